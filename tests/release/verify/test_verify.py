"""verify passes what export wrote, and names the first fault of whatever has been done to it since."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from restorelcc.base.documents import read_json, write_json
from restorelcc.base.errors import BadInput
from restorelcc.base.prunings import parse_pruning
from restorelcc.compensation.compensation import Compensation
from restorelcc.compensation.file import write_compensation
from restorelcc.models.architectures import family_of
from restorelcc.models.checkpoints import load_model
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.release.engines.report import engine_report
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from restorelcc.release.export.source import main_dtype
from restorelcc.release.inspect.inspection import inspect_checkpoint
from restorelcc.release.packed.folder import pack_folder
from restorelcc.release.provenance import RECORD
from restorelcc.release.verify import logits as logits_module
from restorelcc.release.verify.files import Violation
from restorelcc.release.verify.tensors import _check_folded
from restorelcc.release.verify.verify import subject, verify
from restorelcc.stages.prune import PruneConfig
from restorelcc.stages.prune.prune import prune_model
from tests import pico
from tests.fresh import asked_of_a_fork, fresh, interrupted_while_a_fork_works, verify_by_fork
from tests.release.export.restored import Pair, heads_of, pair_of, pruned_model, sites_of, write_pair

WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair_of(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def whole(pair: Pair) -> Path:
    out = pair.pruned.parent / "out"
    export_checkpoint(pair.pruned, pair.compensation, out, ExportOptions(max_shard_bytes=20_000))
    return out


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def _run(folder: Path, against: Path | None = None, compensation: Path | None = None) -> dict[str, str]:
    return dict(verify(subject(folder, against, compensation)))


def test_an_export_is_verified_by_itself(whole: Path) -> None:
    found = _run(whole)
    assert found["fresh process"] == "LlamaForCausalLM in float32, no missing or unexpected keys"
    assert "tolerance 1.00e-05" in found["logits"]
    assert "2:4, 4:8" in found["tensors"]


@pytest.mark.usefixtures("stock_forks")
def test_an_export_is_verified_against_its_parents(whole: Path, pair: Pair) -> None:
    assert _run(whole, pair.pruned, pair.compensation)["against"].endswith("2 biases folded")


@pytest.mark.usefixtures("stock_forks")
def test_a_cut_export_is_verified_against_the_parent_that_it_remembers(tmp_path: Path) -> None:
    model = pico.pico("llama", intermediate_size=48)
    prune_model(model, parse_pruning("slimgpt-0.45"), [pico.tokens()], PruneConfig())
    pair = write_pair(tmp_path, model, Compensation(heads_of(model)))
    export_checkpoint(pair.pruned, pair.compensation, tmp_path / "out", ExportOptions(cut=True))
    assert "tolerance" in _run(tmp_path / "out")["logits"]
    shutil.rmtree(pair.pruned)
    assert "not compared: heads were cut out" in _run(tmp_path / "out")["logits"]


@pytest.mark.usefixtures("stock_forks")
@pytest.mark.parametrize("family", ["gpt_neox", "gemma3_text", "qwen2", "opt"])
def test_other_families_are_verified_in_bfloat16(family: str, tmp_path: Path) -> None:
    pair = pair_of(tmp_path, family, torch.bfloat16)
    export_checkpoint(pair.pruned, pair.compensation, tmp_path / "out", ExportOptions())
    for against in (None, pair.pruned):
        assert "own rounding in bfloat16" in _run(tmp_path / "out", against)["logits"]


def test_folded_biases_below_the_normal_numbers_of_float16_are_right(tmp_path: Path) -> None:
    """There a number is rounded to a multiple of 6e-8, however small it is."""
    wanted_O = torch.linspace(1e-7, 1e-3, 4096)
    _check_folded("bias", wanted_O.half(), wanted_O)
    wrong_O = wanted_O.half()
    wrong_O[5] += 2e-7
    with pytest.raises(Violation, match="bias is not what the compensation folds into it"):
        _check_folded("bias", wrong_O, wanted_O)


@pytest.mark.usefixtures("stock_forks")
@pytest.mark.parametrize("family", pico.MASKS)
def test_masks_that_an_older_class_stored_change_nothing(family: str, tmp_path: Path) -> None:
    model = pruned_model(family, torch.float16)
    values = Compensation(torch.zeros(3, 4, 6), sites_of(model, (family_of(model).ffn_out,)))
    pair = write_pair(tmp_path, model, values)
    expected = inspect_checkpoint(pair.pruned)
    masks = pico.store_masks(pair.pruned, family)
    write_compensation(pair.compensation, values, {})
    assert inspect_checkpoint(pair.pruned) | {"bytes": 0} == expected | {"bytes": 0}
    assert main_dtype(stored_tensors(pair.pruned)) == torch.float16
    export_checkpoint(pair.pruned, pair.compensation, tmp_path / "out", ExportOptions())
    assert set(masks) <= stored_tensors(tmp_path / "out").keys()
    found = _run(tmp_path / "out", pair.pruned)
    assert found["fresh process"].endswith("no missing or unexpected keys")
    assert "with every tensor read" in engine_report(tmp_path / "out", load=True)["engines"][0]["tried"]
    pack_folder(tmp_path / "out", tmp_path / "packed")
    assert _run(tmp_path / "packed")["packed logits"]


@pytest.mark.usefixtures("stock_forks")
def test_a_config_with_a_bare_infinity_is_exported_and_verified(tmp_path: Path) -> None:
    pair = pair_of(tmp_path, "bamba", attention_bias=True)
    path = pair.pruned / "config.json"
    path.write_text(json.dumps(read_json(path) | {"time_step_limit": [0.0, math.inf]}), encoding="utf-8")
    write_compensation(pair.compensation, Compensation(heads_of(pico.pico("bamba"))), {})
    export_checkpoint(pair.pruned, pair.compensation, tmp_path / "out", ExportOptions())
    assert read_json(tmp_path / "out" / "config.json")["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    assert "tolerance" in _run(tmp_path / "out")["logits"]


@pytest.mark.parametrize(
    ("family", "name"), [("gpt2", "h.0.attn.c_masked_bias"), ("gptj", "h.0.mlp.bias"), ("llama", "h.0.attn.bias")]
)
def test_other_tensors_that_the_class_lacks_are_refused(family: str, name: str, tmp_path: Path) -> None:
    pruned = pair_of(tmp_path, family).pruned
    path = pruned / "model.safetensors"
    save_file(load_file(path) | {f"transformer.{name}": torch.zeros(2)}, path, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=rf"has unexpected keys: \['transformer\.{name}'\]"):
        load_model(pruned, torch.float32, torch.device("cpu"))


def _flip_zero(folder: Path) -> None:
    stored = stored_tensors(folder)[WEIGHT]
    value = stored.read()
    value[tuple(torch.nonzero(value == 0)[0])] = 0.5
    stored.overwrite(value)


def _change_weight(folder: Path) -> None:
    stored = stored_tensors(folder)[WEIGHT]
    value = stored.read()
    at = tuple(torch.nonzero(value)[0])
    value[at] = value[at] * 1.01
    stored.overwrite(value)


def _break_pattern(folder: Path) -> None:
    stored = stored_tensors(folder)[WEIGHT]
    value = stored.read()  # move a weight into a group that is full; the number of zeros stays
    full, other = value[0, :4], value[0, 4:8]
    full[(full == 0).nonzero()[0]], other[other.nonzero()[0]] = 0.5, 0.0
    stored.overwrite(value)


def _change_bias(folder: Path) -> None:
    stored = stored_tensors(folder)["model.layers.0.self_attn.o_proj.bias"]
    stored.overwrite(stored.read() * 1.01)


def _spoil_bias(folder: Path) -> None:
    stored = stored_tensors(folder)["model.layers.0.self_attn.o_proj.bias"]
    value = stored.read()
    value[0] = torch.nan
    stored.overwrite(value)


def _edit_config(folder: Path, **changes: object) -> None:
    write_json(folder / "config.json", read_json(folder / "config.json") | changes)


def _pickle(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.write_text, (folder / "exploded", "!"))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (_flip_zero, rf"{WEIGHT} has \d+ zeros, \d+ when it was written"),
    (_change_weight, rf"{WEIGHT} has another content than restorelcc.json records"),
    (_break_pattern, rf"{WEIGHT} no longer has the pattern 2:4"),
    (_change_bias, r"layers.0.self_attn.o_proj.bias has another content"),
    (lambda f: _edit_config(f, attention_bias=False), r"config.json has been changed since it was written"),
    (lambda f: _edit_config(f, auto_map={"AutoModel": "x.Y"}), r"config.json asks for custom code"),
    (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
    (lambda f: (f / "modeling.py").write_text("import os"), "modeling.py is a program"),
    (_pickle, "pytorch_model.bin is a pickle"),
    (lambda f: (f / "restorelcc" / "x.pkl").write_text(""), "x.pkl is a pickle"),
    (lambda f: sorted(f.glob("*.safetensors"))[1].unlink(), "is missing, though model.safetensors.index.json names it"),
    (lambda f: (p := sorted(f.glob("*.safetensors"))[1]).write_bytes(p.read_bytes()[:-9]), "model-00002.* cut short"),
    (lambda f: (f / "restorelcc" / "original.json").unlink(), "original.json is missing"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_the_first_fault_is_named(copy: Path, fault: Callable[[Path], object], message: str) -> None:
    fault(copy)
    with pytest.raises(Violation, match=message):
        _run(copy)
    assert not (copy / "exploded").exists()


def _forget(folder: Path) -> None:
    """Take away what the folder says of itself, as if another tool had written it."""
    (folder / RECORD).unlink()


@pytest.mark.usefixtures("stock_forks")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (_flip_zero, rf"{WEIGHT} has another zero pattern than the pruned checkpoint, first at \["),
        (_change_weight, rf"{WEIGHT} differs from the pruned checkpoint, though its zeros are the same"),
        (_change_bias, "o_proj.bias is not what the compensation folds into it"),
        (_spoil_bias, "o_proj.bias is not what the compensation folds into it"),
        (lambda f: _edit_config(f, attention_bias=False), "reports unexpected keys: model.layers.0"),
        (lambda f: _edit_config(f, rms_norm_eps=0.1), "logits differ from the pruned model with the compensation"),
    ],
)
def test_a_folder_without_record_is_held_against_its_parents(
    copy: Path, pair: Pair, fault: Callable[[Path], object], message: str
) -> None:
    _forget(copy)
    fault(copy)
    with pytest.raises(Violation, match=message):
        _run(copy, pair.pruned, pair.compensation)


def test_a_zero_that_became_a_weight_is_seen_even_when_the_record_was_made_to_agree(copy: Path, pair: Pair) -> None:
    _flip_zero(copy)
    record = read_json(copy / RECORD)
    from restorelcc.base.digest import file_digest
    from restorelcc.release.provenance import tensor_entry

    entries = {
        n: tensor_entry(t.read(), targeted="zeros" in record["tensors"][n]) for n, t in stored_tensors(copy).items()
    }
    files = {name: file_digest(copy / name) for name in record["files"]}
    write_json(copy / RECORD, record | {"tensors": entries, "files": files})
    with pytest.raises(Violation, match=rf"{WEIGHT} has another zero pattern"):
        _run(copy, pair.pruned, pair.compensation)


@pytest.mark.usefixtures("stock_forks")
def test_parents_that_changed_are_named_and_those_that_are_gone_are_told(pair: Pair, tmp_path: Path) -> None:
    for name in ("pruned", "compensation.safetensors"):
        source = pair.pruned.parent / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    own = Pair(tmp_path / "pruned", tmp_path / "compensation.safetensors")
    export_checkpoint(own.pruned, own.compensation, tmp_path / "out", ExportOptions())
    write_compensation(own.compensation, Compensation(2 * heads_of(pruned_model("llama"))), {})
    with pytest.raises(Violation, match="is not the compensation that the checkpoint was made from"):
        _run(tmp_path / "out")
    own.compensation.unlink()
    found = list(verify(subject(tmp_path / "out", None, None), logits=False))
    assert any("compensation" in text and "not checked" in text for _, text in found)
    with pytest.raises(Violation, match="is not the pruned that the checkpoint was made from"):
        _run(tmp_path / "out", against=pair_of(tmp_path / "other", seed=9).pruned)


def test_what_cannot_be_verified_is_bad_input(tmp_path: Path, pair: Pair) -> None:
    with pytest.raises(BadInput, match="is not a folder"):
        subject(tmp_path / "none", None, None)
    with pytest.raises(BadInput, match=r"has no restorelcc.json.*--against PRUNED and --compensation"):
        subject(pair.pruned, None, None)
    (tmp_path / RECORD).write_text(json.dumps({"format": 1}))
    with pytest.raises(BadInput, match="is not a record"):
        subject(tmp_path, None, None)


def test_a_process_that_dies_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fresh.py").write_text("raise SystemExit('no memory left')")
    monkeypatch.setattr(logits_module, "__file__", str(tmp_path / "logits.py"))
    with pytest.raises(Violation, match="does not load in a fresh process: no memory left"):
        logits_module.load_fresh([(tmp_path, [[1]])])


def test_the_verb_loads_in_a_fork_that_knows_transformers_alone(whole: Path) -> None:
    printed, had = fresh(verify_by_fork, whole)
    found = {each["check"]: each["found"] for each in json.loads(printed)["checks"]}
    assert "LlamaForCausalLM in float32" in found["fresh process"] and "max |difference|" in found["logits"]
    rooms = {name.split(".")[1] for name in had if "." in name}
    assert rooms <= {"base", "cli", "release", "pipeline"}, had
    assert not [name for name in had if name.startswith("restorelcc.release.") and "verify" not in name], had


def test_a_fork_that_fails_says_why(tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps([{"folder": str(tmp_path / "none"), "tokens": [[1]], "logits": "x", "report": "y"}]))
    status, said = fresh(asked_of_a_fork, request)
    assert status == 1
    assert "none" in said.splitlines()[-1]


def test_an_interrupted_verify_leaves_no_process(tmp_path: Path) -> None:
    assert fresh(interrupted_while_a_fork_works, tmp_path)
