"""What lies beside the weights goes along, and what an export would lose or replace is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from restorelcc.base.errors import BadInput
from restorelcc.compensation.compensation import Compensation
from restorelcc.compensation.file import write_compensation
from restorelcc.models.checkpoint_check import check_checkpoint
from restorelcc.models.checkpoints import lend_tokenizer, load_model, load_tokenizer, save_checkpoint, write_reference
from restorelcc.models.references import pinned_source
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.release.export.apply import apply_compensation, remove_compensation
from restorelcc.release.export.cell import Parts, export_cell
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from restorelcc.release.verify.files import Violation
from restorelcc.release.verify.verify import subject, verify
from tests import pico
from tests.release.export.restored import Pair, heads_of, pruned_model, write_pair

CPU = torch.device("cpu")


def _pair(folder: Path, family: str = "llama", *, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Pair:
    model = pruned_model(family, dtype)
    return write_pair(folder, model, Compensation(heads_of(model, scale)))


def _free(folder: Path, family: str) -> Path:
    """A compensation that is of no checkpoint in particular."""
    write_compensation(folder / "free.safetensors", Compensation(heads_of(pruned_model(family))), {})
    return folder / "free.safetensors"


def _verified(folder: Path, against: Path | None = None, *, logits: bool = True) -> dict[str, str]:
    return dict(verify(subject(folder, against, None), logits=logits))


def test_processors_chat_templates_and_licences_go_along(tmp_path: Path) -> None:
    pair = _pair(tmp_path, "gemma3")
    extra = ["preprocessor_config.json", "processor_config.json", "LICENSE", "additional_chat_templates/tool.jinja"]
    for name in extra:
        (pair.pruned / name).parent.mkdir(exist_ok=True)
        (pair.pruned / name).write_text("{}")
    export_checkpoint(pair.pruned, _free(tmp_path, "gemma3"), tmp_path / "out", ExportOptions())
    for name in extra:
        assert (tmp_path / "out" / name).read_text() == "{}", name
    assert set(AutoTokenizer.from_pretrained(tmp_path / "out").chat_template) >= {"tool"}


def test_the_checkpoint_behind_a_reference_is_not_replaced(tmp_path: Path) -> None:
    pair = _pair(tmp_path)
    write_reference(tmp_path / "ref", pinned_source("k", str(pair.pruned), None, tmp_path))
    before = {path.name: path.read_bytes() for path in pair.pruned.iterdir()}
    with pytest.raises(BadInput, match="contain one another"):
        export_checkpoint(tmp_path / "ref", _free(tmp_path, "llama"), pair.pruned, ExportOptions(overwrite=True))
    assert before == {path.name: path.read_bytes() for path in pair.pruned.iterdir()}


def test_a_lent_tokenizer_goes_with_a_merged_adapter(tmp_path: Path) -> None:
    model = pruned_model("llama")
    model.save_pretrained(tmp_path / "pruned")
    save_checkpoint(tmp_path / "dense", model, pico.word_tokenizer())
    write_reference(tmp_path / "ref", pinned_source("k", str(tmp_path / "pruned"), None, tmp_path))
    assert lend_tokenizer(tmp_path / "dense", tmp_path / "ref")
    adapted = get_peft_model(
        load_model(tmp_path / "pruned", torch.float32, CPU), LoraConfig(r=2, target_modules=["q_proj"])
    )
    (tmp_path / "recovered").mkdir()
    adapted.save_pretrained(tmp_path / "recovered" / "adapter")
    parts = Parts(tmp_path / "ref", adapter=tmp_path / "recovered" / "adapter", work=tmp_path / "work")
    export_cell(parts, tmp_path / "out", ExportOptions(), "zeros-kept")
    for path in (tmp_path / "dense").glob("tokenizer*"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert load_tokenizer(tmp_path / "out")("w5 w6")["input_ids"] == pico.word_tokenizer()("w5 w6")["input_ids"]


@pytest.mark.usefixtures("stock_forks")
def test_former_names_are_verified_against_their_source_and_applied_to_no_copy(tmp_path: Path) -> None:
    """As GPT-2 has them on the hub."""
    pair = _pair(tmp_path, "gpt2")
    pico.store_masks(pair.pruned, "gpt2")
    file = pair.pruned / "model.safetensors"
    save_file(
        {name.removeprefix("transformer."): value for name, value in load_file(file).items()}, file, {"format": "pt"}
    )
    (pair.pruned / "LICENSE").write_text("mine")
    (pair.pruned / "LICENSES").mkdir()
    (pair.pruned / "LICENSES" / "MIT.txt").write_text("theirs")
    free = _free(tmp_path, "gpt2")
    export_checkpoint(pair.pruned, free, tmp_path / "out", ExportOptions())
    for path in pair.pruned.glob("tokenizer*"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "out" / "LICENSE").read_text() == "mine"
    assert (tmp_path / "out" / "LICENSES" / "MIT.txt").read_text() == "theirs"
    assert "against" in _verified(tmp_path / "out", pair.pruned)
    with pytest.raises(BadInput, match=r"under former names.*use `restorelcc export`"):
        apply_compensation(pair.pruned, free, tmp_path / "applied", ExportOptions(verbatim=True))


@pytest.mark.usefixtures("stock_forks")
def test_what_llm_compressor_marks_as_pruned_only_is_verified(tmp_path: Path) -> None:
    pair = _pair(tmp_path)
    config = json.loads((pair.pruned / "config.json").read_text())
    mark = {"quant_method": "compressed-tensors", "format": "dense", "quantization_status": "compressed"}
    mark |= {"sparsity_config": {"format": "dense"}, "config_groups": {}, "ignore": [], "kv_cache_scheme": None}
    (pair.pruned / "config.json").write_text(json.dumps(config | {"quantization_config": mark}))
    export_checkpoint(pair.pruned, _free(tmp_path, "llama"), tmp_path / "out", ExportOptions())
    assert "tolerance" in _verified(tmp_path / "out")["logits"]


def test_line_ends_come_back(tmp_path: Path) -> None:
    pair = _pair(tmp_path)
    config = pair.pruned / "config.json"
    config.write_bytes(config.read_bytes().replace(b"\n", b"\r\n"))
    before = {path.name: path.read_bytes() for path in pair.pruned.iterdir()}
    apply_compensation(pair.pruned, _free(tmp_path, "llama"), tmp_path / "applied", ExportOptions(verbatim=True))
    remove_compensation(tmp_path / "applied", tmp_path / "removed")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "removed").iterdir()}


@pytest.mark.parametrize("name", ["chat_template.jinja", "added_tokens.json", "preprocessor_config.json"])
def test_a_file_that_was_added_and_changes_what_a_model_does_is_named(tmp_path: Path, name: str) -> None:
    pair = _pair(tmp_path)
    export_checkpoint(pair.pruned, pair.compensation, tmp_path / "out", ExportOptions())
    (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(Violation, match=rf"{name} was not written with the checkpoint"):
        _verified(tmp_path / "out", logits=False)


def test_what_is_cut_out_keeps_the_dtype_of_every_tensor(tmp_path: Path) -> None:
    model = pruned_model("mistral", torch.bfloat16)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, :8] = 0
    save_checkpoint(tmp_path / "pruned", model, pico.word_tokenizer())
    file = tmp_path / "pruned" / "model.safetensors"
    mixed = {name: value.float() if "norm" in name else value for name, value in load_file(file).items()}
    save_file(mixed, file, {"format": "pt"})
    export_checkpoint(tmp_path / "pruned", None, tmp_path / "cut", ExportOptions(cut=True))
    before, after = (stored_tensors(tmp_path / name) for name in ("pruned", "cut"))
    assert {name: tensor.dtype for name, tensor in after.items()} == {name: before[name].dtype for name in after}
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["dtype"] == "bfloat16"


def test_parents_are_found_from_behind_a_link(tmp_path: Path) -> None:
    pair = _pair(tmp_path)
    (tmp_path / "a" / "far" / "disk").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "far" / "disk")
    export_checkpoint(pair.pruned, pair.compensation, tmp_path / "link" / "out", ExportOptions())
    found = [
        said
        for check, said in verify(subject(tmp_path / "link" / "out", None, None), logits=False)
        if check == "parents"
    ]
    assert found and not [said for said in found if "not checked" in said]


def test_a_bias_that_float16_does_not_hold_is_refused(tmp_path: Path) -> None:
    pair = _pair(tmp_path, scale=2e6, dtype=torch.float16)
    with pytest.raises(BadInput, match="is more than float16 holds"):
        export_checkpoint(pair.pruned, pair.compensation, tmp_path / "out", ExportOptions())
    assert not (tmp_path / "out").exists()


def test_layers_that_predict_further_tokens_are_no_damage(tmp_path: Path) -> None:
    """As GLM-4.5 and DeepSeek-V3 have one behind the others."""
    model = pico.pico("glm4_moe")
    save_checkpoint(tmp_path / "p", model, pico.word_tokenizer())
    file, count = tmp_path / "p" / "model.safetensors", model.config.num_hidden_layers
    tensors = load_file(file)
    tensors[f"model.layers.{count}.self_attn.o_proj.weight"] = tensors["model.layers.0.self_attn.o_proj.weight"].clone()
    save_file(tensors, file, {"format": "pt"})
    config = json.loads((tmp_path / "p" / "config.json").read_text())
    (tmp_path / "p" / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    check_checkpoint(tmp_path / "p")
    (tmp_path / "p" / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 0}))
    with pytest.raises(BadInput, match=f"holds {count + 1} layers"):
        check_checkpoint(tmp_path / "p")
