"""`restorelcc inspect` against counts made with NumPy."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from restorelcc.__main__ import main
from restorelcc.base.documents import write_document
from restorelcc.base.prunings import parse_pruning
from restorelcc.models.architectures import FAMILIES
from restorelcc.models.checkpoints import save_checkpoint, write_reference
from restorelcc.models.references import pinned_source
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from restorelcc.release.inspect.inspection import inspect_checkpoint
from restorelcc.release.patterns import common_patterns, held_patterns, recorded_groups
from restorelcc.release.verify.tensors import check_recorded
from restorelcc.sparsity.patterns import densest_group
from restorelcc.stages.prune.prune import prune_model
from tests import pico


def _saved(folder: Path, pruning: str, family: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
    model = pico.pico(family)
    prune_model(model, parse_pruning(pruning), [pico.tokens()])
    model.to(dtype).save_pretrained(folder)
    return folder


def _inspect(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["restorelcc", "inspect", *arguments])
    capsys.readouterr()  # what pruning and saving the model printed is not inspect's
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0), "".join(capsys.readouterr())


@pytest.mark.parametrize("family", pico.FAMILIES)
@pytest.mark.parametrize("pruning", ["wanda-0.4", "sparsegpt-2of4", "slimgpt-0.45"])
def test_counts_equal_a_numpy_count(
    family: str, pruning: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = load_file(_saved(tmp_path, pruning, family) / "model.safetensors")
    code, output = _inspect(capsys, monkeypatch, str(tmp_path), "--json")
    assert code == 0
    found, row = json.loads(output), FAMILIES[family]
    for layer in found["layers"]:
        prefix = f"{row.blocks}.{layer['layer']}."
        arrays = {path: weights[f"{prefix}{path}.weight"].numpy() for path in row.linears}
        assert layer["zeros"] == sum(np.count_nonzero(array == 0) for array in arrays.values())
        assert layer["total"] == sum(array.size for array in arrays.values())
        by_head = arrays[row.out_proj].reshape(len(arrays[row.out_proj]), pico.HEADS, -1)
        assert layer["heads_removed"] == int((by_head == 0).all(axis=(0, 2)).sum())
        assert layer["channels_removed"] == int((arrays[row.ffn_out] == 0).all(axis=0).sum())
    assert len(found["layers"]) == pico.LAYERS
    assert found["parameters"] == sum(weight.numel() for weight in weights.values())
    assert found["bytes"] == (tmp_path / "model.safetensors").stat().st_size
    assert found["patterns"] == (["2:4", "4:8"] if pruning == "sparsegpt-2of4" else [])
    assert (found["heads_removed"] > 0) == (pruning == "slimgpt-0.45")


@pytest.mark.parametrize(
    ("pruning", "held", "older"),
    [
        ("wanda-8of16", ["7:8", "8:16"], []),  # of so few groups none is full by chance
        ("magnitude-12of16", ["12:16"], []),
        ("magnitude-1of2", ["1:2", "2:4", "4:8"], ["2:4", "4:8"]),
        ("wanda-2of6", ["2:6", "4:8"], ["4:8"]),
    ],
)
def test_patterns_of_any_size_are_named_in_inspect_record_and_verify(
    pruning: str, held: list[str], older: list[str], tmp_path: Path
) -> None:
    model = pico.pico("llama", hidden_size=48, intermediate_size=48, head_dim=12)
    prune_model(model, parse_pruning(pruning), [pico.tokens()])
    save_checkpoint(tmp_path / "pruned", model, pico.word_tokenizer())
    pattern = str(parse_pruning(pruning).sparsity)
    write_document(tmp_path / "pruned" / "sparsity.json", {"pattern": pattern, "layers": []})
    found = inspect_checkpoint(tmp_path / "pruned")
    assert found["patterns"] == held and all(set(held) - {"7:8"} <= {*layer["patterns"]} for layer in found["layers"])
    record = export_checkpoint(tmp_path / "pruned", None, tmp_path / "out", ExportOptions())
    assert record["sparsity"]["patterns"] == inspect_checkpoint(tmp_path / "out")["patterns"] == held
    stored = stored_tensors(tmp_path / "out")
    assert check_recorded(stored, record).endswith(f"zeros, {', '.join(held)}")
    for entry in record["tensors"].values():
        if "patterns" in entry:
            entry["patterns"] = older  # as records had it before
    check_recorded(stored, record)
    if pruning != "magnitude-12of16":
        (tmp_path / "pruned" / "sparsity.json").unlink()
        found = inspect_checkpoint(tmp_path / "pruned")
        assert found["patterns"] == [pattern for pattern in held if pattern != "2:6"], "other sizes need no account"


@pytest.mark.parametrize("said", ["2of4", "1:0", "", "2:", 4, None, ["2:4"]])
def test_a_foreign_account_of_a_pattern_is_none(said: object, tmp_path: Path) -> None:
    assert recorded_groups(tmp_path) == ()
    write_document(tmp_path / "sparsity.json", {"pattern": said})
    write_document(tmp_path / "restorelcc.json", {"sparsity": {"patterns": [said]}})
    assert recorded_groups(tmp_path) == ()
    write_document(tmp_path / "restorelcc.json", {"sparsity": said})
    assert recorded_groups(tmp_path) == ()


def test_chance_is_no_pattern_and_one_that_holds_another_is_not_repeated() -> None:
    weight_OI = torch.ones(2, 32)
    weight_OI[:, [0, 20]] = 0  # at most 15 of any 16
    assert held_patterns(weight_OI, densest_group) == []
    assert held_patterns(weight_OI, densest_group, (16,)) == ["15:16"]
    assert common_patterns([["2:4", "4:8", "8:16"], ["1:4", "2:8", "4:16"]]) == ["2:4", "4:8"]
    assert common_patterns([["4:8", "6:16"], ["4:8", "7:16"]]) == ["4:8", "7:16"]
    assert common_patterns([["2:4"], []]) == common_patterns([]) == []


def test_one_weight_too_many_breaks_a_pattern() -> None:
    weight = torch.tensor([[1.0, 0, 0, 2, 0, 3, 4, 0]])
    assert densest_group(weight, 4) == 2
    weight[0, 1] = 1
    assert densest_group(weight, 4) == 3
    assert densest_group(weight, 3) is None


def test_the_table_follows_a_reference_and_names_dtype_and_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _saved(tmp_path / "pruned", "slimgpt-0.45", dtype=torch.bfloat16)
    write_reference(tmp_path / "reference", pinned_source("key", str(folder), None, tmp_path))
    code, output = _inspect(capsys, monkeypatch, str(tmp_path / "reference"))
    assert code == 0
    for text in ("heads removed", "2 of 4", "bfloat16", "KiB on disk"):
        assert text in output


def test_folders_that_hold_no_known_checkpoint_are_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = {
        "unknown": {"model_type": "mamba"},
        "experts": {"model_type": "jetmoe", "num_local_experts": 8},
        "empty": {"model_type": "llama", "num_hidden_layers": 1},
    }
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    for name, message in {
        "nowhere": "holds no model",
        "unknown": "model family 'mamba' is not supported: known are llama, mistral",
        "experts": "model family 'jetmoe' is a mixture of experts that is not supported",
        "empty": "holds no .safetensors file",
    }.items():
        code, output = _inspect(capsys, monkeypatch, str(tmp_path / name))
        assert code == 2
        assert message in output
        assert ("run `restorelcc inspect --family DIR`" in output) == (name in ("unknown", "experts"))
        assert output.count("\n") == 1, output
