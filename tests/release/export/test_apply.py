"""remove(apply(m)) == m, byte for byte, for every family and dtype."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.compensation.compensation import Compensation, Site
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.release.export import writing
from restorelcc.release.export.apply import apply_compensation, remove_compensation
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from restorelcc.release.shown import described
from tests import pico
from tests.release.export.restored import heads_of, pair_of, pruned_model, sites_of, write_pair
from tests.release.export.test_families import SITES

VERBATIM = ExportOptions(verbatim=True)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_taken_out_again_it_is_byte_identical(family: str, tmp_path: Path) -> None:
    for number, dtype in enumerate(DTYPES):
        folder = tmp_path / str(number)
        model = pruned_model(family, dtype)
        pair = write_pair(folder, model, Compensation(heads_of(model, scale=3.0), sites_of(model, SITES[family])))
        (pair.pruned / "notes").mkdir()
        (pair.pruned / "notes" / "mine.txt").write_text("kept")
        (pair.pruned / "README.md").write_text("# Mine")
        before = _files(pair.pruned)
        apply_compensation(pair.pruned, pair.compensation, folder / "applied", VERBATIM)
        applied = _files(folder / "applied")
        assert {"notes/mine.txt", "README.md", "tokenizer.json"} <= set(applied)
        assert applied["model.safetensors"] != before["model.safetensors"]
        remove_compensation(folder / "applied", folder / "removed")
        assert _files(folder / "removed") == before


def test_shards_come_back_as_they_were_from_other_shards(tmp_path: Path) -> None:
    model = pruned_model("opt")
    pair = write_pair(tmp_path, model, Compensation(heads_of(model)))
    model.save_pretrained(tmp_path / "again", max_shard_size=20_000)
    for path in pair.pruned.glob("tokenizer*"):
        (tmp_path / "again" / path.name).write_bytes(path.read_bytes())
    before = _files(tmp_path / "again")
    assert sum(name.endswith(".safetensors") for name in before) > 1
    from restorelcc.compensation.file import write_compensation

    write_compensation(tmp_path / "free.safetensors", Compensation(heads_of(model)), {})
    export_checkpoint(
        tmp_path / "again", tmp_path / "free.safetensors", tmp_path / "out", ExportOptions(max_shard_bytes=7_000)
    )
    remove_compensation(tmp_path / "out", tmp_path / "removed")
    assert _files(tmp_path / "removed") == before


def test_applying_changes_what_the_model_says(tmp_path: Path) -> None:
    pair = pair_of(tmp_path)
    apply_compensation(pair.pruned, pair.compensation, tmp_path / "applied", VERBATIM)
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (pair.pruned, tmp_path / "applied")]
    with torch.no_grad():
        logits = [model(input_ids=pico.tokens()).logits for model in models]
    assert (logits[0] - logits[1]).abs().max() > 1e-2
    with pytest.raises(BadInput, match=r"carries a compensation already.*remove"):
        apply_compensation(tmp_path / "applied", pair.compensation, tmp_path / "twice", VERBATIM)


def test_a_tokenizer_config_that_a_relabelled_checkpoint_needs_changed_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = pair_of(tmp_path, "mistral")
    before = _files(pair.pruned)
    for options in (VERBATIM, ExportOptions()):
        answers = iter([False, True])
        monkeypatch.setattr(writing, "_same_tokens", lambda *_, answers=answers: next(answers))
        out = tmp_path / f"verbatim-{options.verbatim}"
        export_checkpoint(pair.pruned, pair.compensation, out, options)
        config = json.loads((out / "tokenizer_config.json").read_text())
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert (out / "tokenizer_config.json").read_bytes() != before["tokenizer_config.json"]
        remove_compensation(out, out.with_suffix(".removed"))
        removed = _files(out.with_suffix(".removed"))
        assert removed["tokenizer_config.json"] == before["tokenizer_config.json"]
        if options.verbatim:
            assert removed == before


def test_an_export_keeps_its_own_record(tmp_path: Path) -> None:
    pair = pair_of(tmp_path)
    export_checkpoint(pair.pruned, None, tmp_path / "export", ExportOptions())
    with pytest.raises(BadInput, match=r"is an export \(restorelcc\.json\).*restorelcc export --pruned"):
        apply_compensation(tmp_path / "export", pair.compensation, tmp_path / "out", VERBATIM)


def test_what_cannot_be_taken_out_is_refused(tmp_path: Path) -> None:
    pair = pair_of(tmp_path)
    with pytest.raises(BadInput, match="does not hold the data needed"):
        remove_compensation(pair.pruned, tmp_path / "out")
    apply_compensation(pair.pruned, pair.compensation, tmp_path / "applied", VERBATIM)
    stored = stored_tensors(tmp_path / "applied")["model.layers.0.mlp.up_proj.weight"]
    stored.overwrite(stored.read() + 1)
    with pytest.raises(StageFailed, match="cannot be restored exactly"):
        remove_compensation(tmp_path / "applied", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_it_holds_is_told_of_files_and_folders(tmp_path: Path) -> None:
    model = pruned_model("llama")
    sites = {Site(1, "mlp.down_proj"): torch.full((16,), 0.5)}
    pair = write_pair(tmp_path, model, Compensation(heads_of(model), sites))
    found = described(pair.compensation)
    assert [(row["layer"], row["head"]) for row in found["heads"]] == [(0, 3), (2, 1)]
    assert found["sites"] == [{"layer": 1, "linear": "mlp.down_proj", "norm": 2.0}]
    assert (found["layers"], found["heads_per_layer"], found["head_dim"]) == (3, 4, 6)
    assert found["metadata"]["model"] == "pico"
    with pytest.raises(BadInput, match="carries no compensation"):
        described(pair.pruned)
    apply_compensation(pair.pruned, pair.compensation, tmp_path / "applied", VERBATIM)
    again = described(tmp_path / "applied")
    assert again == found | {"can_be_removed": True}
    json.dumps(again)
