"""A recovered checkpoint has the dtypes of the pruned one, whatever the model computes in; so has what is not trained
its bits, and all of it where no change was best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from restorelcc.base.documents import read_json, write_json
from restorelcc.base.layout import Layout
from restorelcc.models.architectures import head_layout, prunable_linears
from restorelcc.models.checkpoints import load_model, write_reference
from restorelcc.models.references import pinned_source
from restorelcc.models.tensor_bytes import tensor_bytes
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.stages.recover import RecoverConfig
from restorelcc.stages.recover import biases as biases_module
from restorelcc.stages.recover.stage import run
from restorelcc.training.attached_weights import WeightChange, apply_change
from tests import pico
from tests.recovery_project import CELL, ENTRY, recovery_project, write_components

CPU = torch.device("cpu")
CONFIG = RecoverConfig(learning_rates=(0.02,), epochs=2, batch_size=8, max_tokens=16, rank=2)
CHECKPOINTS = ["masked", "masked-lora", "reconstruct", "masked-compensated", "reconstruct-distilled"]
STORED = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


def _store_again(layout: Layout, dtype: torch.dtype, *, sharded: bool = False) -> None:
    """The pruned checkpoint in another dtype, its norms in float32, with digits that bfloat16 lacks; some zeros are
    -0.0, as W * mask makes them."""
    folder = layout.pruned(CELL)
    model = load_model(folder, torch.float32, CPU)
    for name, part in model.named_parameters():
        if "norm" in name:
            part.data += 2.0**-12
        else:
            part.data = part.data.to(dtype)
    for _, _, linear in prunable_linears(model):
        linear.weight.data[:2][linear.weight[:2] == 0] = -0.0
    model.save_pretrained(folder, max_shard_size="8KB" if sharded else "5GB")
    if sharded:
        (folder / "model.safetensors").unlink(missing_ok=True)
    write_components(layout, head_layout(model))


def _recovered(layout: Layout, name: str, computed: str, config: RecoverConfig = CONFIG) -> Path:
    cell = replace(CELL, recovery=name)
    run(cell, config, ENTRY.model_copy(update={"dtype": computed}), layout)
    return layout.recovered(cell) / "model"


def _contents(folder: Path) -> dict[str, tuple[str, bytes]]:
    return {name: (each.code, bytes(each.content())) for name, each in tensor_bytes(folder).items()}


def _linears() -> set[str]:
    return {f"{name}.weight" for _, name, _ in prunable_linears(pico.pico())}


@pytest.fixture(scope="module", params=["bfloat16 float32", "float32 bfloat16", "float16 bfloat16"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, str]:
    """A project whose pruned checkpoint has one dtype, and the other one, in which models are to compute."""
    layout, (dtype, computed) = recovery_project(tmp_path_factory.mktemp("project")), request.param.split()
    _store_again(layout, STORED[dtype])
    return layout, computed


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_dtypes_zeros_and_untrained_tensors_are_those_of_the_pruned_checkpoint(
    name: str, stored: tuple[Layout, str]
) -> None:
    layout, computed = stored
    folder, pruned = _recovered(layout, name, computed), layout.pruned(CELL)
    before, after = _contents(pruned), _contents(folder)
    assert {key: code for key, (code, _) in after.items()} == {key: code for key, (code, _) in before.items()}
    changed = {key for key in before if after[key] != before[key]}
    assert changed == _linears()
    now = stored_tensors(folder)
    for key, tensor in stored_tensors(pruned).items():
        zero = tensor.read() == 0
        assert torch.equal(now[key].read() == 0, zero)
        assert torch.equal(now[key].read()[zero].signbit(), tensor.read()[zero].signbit()), "-0.0 is one"
    assert read_json(folder / "config.json") == read_json(pruned / "config.json")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_where_no_change_is_best_the_weights_are_a_copy(
    name: str, stored: tuple[Layout, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "restorelcc.training.best._against_no_change", lambda _m, _t, choice, *_: replace(choice, candidate="no change")
    )
    layout, computed = stored
    folder, pruned = _recovered(layout, name, computed), layout.pruned(CELL)
    assert read_json(folder.parent / "recovery.json")["no_change"] is True
    assert _contents(folder) == _contents(pruned)
    files = ("model.safetensors", "config.json", "generation_config.json")
    assert all((folder / file).read_bytes() == (pruned / file).read_bytes() for file in files)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_float32_checkpoint_on_the_cpu_gets_what_was_trained_bit_for_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = recovery_project(tmp_path)

    def applied(linears: dict[str, nn.Linear], change: WeightChange) -> None:
        before, changes = [linear.weight.clone() for linear in linears.values()], change.changes()
        apply_change(linears, change)
        for (path, linear), weight in zip(linears.items(), before, strict=True):
            assert torch.equal(linear.weight, weight + changes[path])
        last.extend(linear.weight.clone() for linear in linears.values())

    last: list[torch.Tensor] = []
    monkeypatch.setattr("restorelcc.stages.recover.weights.apply_change", applied)
    monkeypatch.setattr("restorelcc.stages.recover.reconstruct.apply_change", applied)
    found = load_model(_recovered(layout, name, "float32"), torch.float32, CPU)
    linears = [linear for _, _, linear in prunable_linears(found)]
    assert all(torch.equal(x.weight, weight) for x, weight in zip(linears, last[-len(linears) :], strict=True))


@pytest.mark.parametrize("name", ["masked-compensated", "reconstruct-compensated"])
@pytest.mark.parametrize("streams", [True, False])
def test_biases_are_trained_on_the_weights_that_are_shipped(
    name: str, streams: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = recovery_project(tmp_path)
    _store_again(layout, torch.bfloat16)
    models: list[dict[str, torch.Tensor]] = []
    train = biases_module.trained_compensation

    def seen(inputs: Any, model: PreTrainedModel, initial: Any) -> Any:
        models.append({key: value.clone() for key, value in model.state_dict().items()})
        return train(inputs, model, initial)

    monkeypatch.setattr(biases_module, "trained_compensation", seen)
    if not streams:
        monkeypatch.setattr("restorelcc.stages.recover.reconstruct.can_stream", lambda *_: False)
    shipped = load_model(_recovered(layout, name, "float32"), torch.float32, CPU).state_dict()
    assert all(torch.equal(models[0][key], value) for key, value in shipped.items())


@pytest.mark.parametrize("name", ["masked", "reconstruct"])
def test_an_external_checkpoint_in_shards_stays_where_it_is_and_as_it_is(name: str, tmp_path: Path) -> None:
    layout = recovery_project(tmp_path / "project")
    _store_again(layout, torch.bfloat16, sharded=True)
    elsewhere = layout.pruned(CELL).rename(tmp_path / "elsewhere")
    write_reference(layout.pruned(CELL), pinned_source("k", str(elsewhere), None, tmp_path))
    write_components(layout, head_layout(pico.pico()))
    before = {path.name: path.read_bytes() for path in elsewhere.iterdir()}
    folder = _recovered(layout, name, "float32")
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == before
    assert (folder / "model.safetensors.index.json").read_bytes() == before["model.safetensors.index.json"]
    found, wanted = _contents(folder), _contents(elsewhere)
    assert {key: code for key, (code, _) in found.items()} == {key: code for key, (code, _) in wanted.items()}
    assert {key for key in wanted if found[key] != wanted[key]} == _linears()
    assert not any(layout.work.iterdir())


@pytest.mark.parametrize("name", ["masked", "reconstruct"])
def test_former_names_are_recovered_in_their_dtype(name: str, tmp_path: Path) -> None:
    layout = recovery_project(tmp_path)
    _store_again(layout, torch.bfloat16)
    file = layout.pruned(CELL) / "model.safetensors"
    present = _contents(layout.pruned(CELL))
    save_file({key.removeprefix("model."): value for key, value in load_file(file).items()}, file, {"format": "pt"})
    write_components(layout, head_layout(pico.pico()))
    found = _contents(_recovered(layout, name, "float32"))
    assert {key: code for key, (code, _) in found.items()} == {key: code for key, (code, _) in present.items()}
    assert {key for key in present if found[key] != present[key]} == _linears()


def _pruned_by_size(model: PreTrainedModel) -> None:
    """Of models with experts nothing is pruned here."""
    for _, _, linear in prunable_linears(model):
        linear.weight.masked_fill_(linear.weight.abs() < linear.weight.abs().median(), 0)


@pytest.mark.parametrize("name", ["masked", "reconstruct", "reconstruct-distilled"])
@pytest.mark.parametrize("family", ["gpt2", "qwen2_moe", "gemma3"])
def test_other_families_keep_their_dtypes(
    family: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights stored turned; experts that the class fuses, so that the model is loaded whole; a model that sees."""
    monkeypatch.setattr("tests.recovery_project.prune_model", lambda model, *_: _pruned_by_size(model))
    layout = recovery_project(tmp_path, family=family)
    model = load_model(layout.pruned(CELL), torch.bfloat16, CPU)
    model.save_pretrained(layout.pruned(CELL))
    write_components(layout, head_layout(model))
    present = _contents(layout.pruned(CELL))
    found = _contents(_recovered(layout, name, "float32"))
    assert {key: code for key, (code, _) in found.items()} == {key: code for key, (code, _) in present.items()}
    assert {key for key in present if found[key] != present[key]} == {f"{key}.weight" for _, key, _ in
                                                                     prunable_linears(model)}  # fmt: skip


@pytest.mark.parametrize("name", ["masked", "reconstruct"])
def test_what_a_compression_marks_in_the_config_does_not_keep_it_from_loading(name: str, tmp_path: Path) -> None:
    """llm-compressor's mark of a model that was pruned only."""
    layout = recovery_project(tmp_path)
    mark = {"quant_method": "compressed-tensors", "format": "dense", "quantization_status": "compressed"}
    mark |= {"sparsity_config": {"format": "dense"}, "config_groups": {}, "ignore": [], "kv_cache_scheme": None}
    config = layout.pruned(CELL) / "config.json"
    write_json(config, read_json(config) | {"quantization_config": mark})
    write_components(layout, head_layout(pico.pico()))
    load_model(_recovered(layout, name, "float32"), torch.float32, CPU)
