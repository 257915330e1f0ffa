"""An adapter merged into the weights: what is measured is what is written, and all that it does not touch stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from restorelcc.base.errors import BadInput
from restorelcc.base.manifest import MANIFEST
from restorelcc.base.recoveries import MERGES
from restorelcc.compensation.adapter import with_adapter
from restorelcc.models.architectures import prunable_linears
from restorelcc.models.checkpoints import load_model, save_checkpoint
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.release.export import cell as cell_module
from restorelcc.release.export.cell import Parts, export_cell
from restorelcc.release.export.export import ExportOptions
from restorelcc.release.export.source import open_source
from restorelcc.sparsity.kept import widest, write_as_stored
from restorelcc.stages.recover.adapters import with_adapters, write_adapter
from restorelcc.training.config import SITES
from tests import pico
from tests.release.export.restored import pruned_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """A checkpoint in bfloat16 with norms in float32, and an adapter of all its linears."""
    return _parts(tmp_path_factory.mktemp("merge"), torch.bfloat16)


def _parts(folder: Path, dtype: torch.dtype, family: str = "llama") -> Parts:
    model = pruned_model(family, dtype)
    for name, part in model.named_parameters():
        if "norm" in name:
            part.data = part.data.float() + 2.0**-20
    for _, _, linear in prunable_linears(model):
        linear.weight[linear.weight != 0] += torch.finfo(dtype).eps  # digits that a narrower dtype lacks
        linear.weight[0, torch.nonzero(linear.weight[0])[0]] = torch.finfo(dtype).smallest_normal
    save_checkpoint(folder / "pruned", model, pico.word_tokenizer())
    adapted = with_adapters(load_model(folder / "pruned", torch.float32, CPU), SITES, 2)
    for name, part in adapted.named_parameters():
        if "lora_B" in name:
            part.data.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    write_adapter(folder / "adapter", adapted)
    return Parts(folder / "pruned", adapter=folder / "adapter", work=folder / "work")


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16])
def test_what_is_measured_is_what_is_written(merge: str, computed: torch.dtype, parts: Parts, tmp_path: Path) -> None:
    assert parts.adapter is not None and parts.work is not None
    before = stored_tensors(parts.checkpoint)
    measured, _ = with_adapter(load_model(parts.checkpoint, computed, CPU), parts.adapter, MERGES[merge], before)
    export_cell(parts, tmp_path / "out", ExportOptions(), merge)
    written = stored_tensors(tmp_path / "out")
    linears = {f"{name}.weight": linear.weight for _, name, linear in prunable_linears(measured)}
    for name, weight_OI in linears.items():
        assert torch.equal(written[name].read(), weight_OI.to(torch.bfloat16)), name
        assert torch.equal(weight_OI.to(torch.bfloat16).to(computed), weight_OI), "rounded as it is stored"
        assert not torch.equal(written[name].read(), before[name].read())
        zeros = before[name].read() == 0
        assert bool((written[name].read()[zeros] == 0).all()) == (merge == "zeros-kept")
    for name, tensor in before.items():
        assert written[name].dtype == tensor.dtype
        assert name in linears or torch.equal(written[name].read(), tensor.read()), name
    assert not list(parts.work.iterdir()), "no scratch files are left"
    assert sorted(path.name for path in parts.work.parent.iterdir()) == ["adapter", "pruned", "work"]


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize(
    ("family", "kept", "computed"),
    [
        ("llama", torch.float32, torch.bfloat16),
        ("llama", torch.float16, torch.bfloat16),
        ("llama", torch.float32, torch.float16),
        ("gpt2", torch.float32, torch.bfloat16),
    ],
    ids=str,
)
def test_a_model_that_computes_narrower_than_it_is_stored_is_merged_as_it_is_stored(
    merge: str, family: str, kept: torch.dtype, computed: torch.dtype, tmp_path: Path
) -> None:
    parts = _parts(tmp_path, kept, family)
    assert parts.adapter is not None
    before = stored_tensors(parts.checkpoint)
    measured, _ = with_adapter(load_model(parts.checkpoint, computed, CPU), parts.adapter, MERGES[merge], before)
    export_cell(parts, tmp_path / "out", ExportOptions(), merge)
    written = stored_tensors(tmp_path / "out")
    for _, name, linear in prunable_linears(measured):
        value_OI, own_OI = (each[f"{name}.weight"].as_linear(family == "gpt2").read() for each in (written, before))
        assert value_OI.dtype == kept and linear.weight.dtype == computed
        assert torch.equal(value_OI.to(computed), linear.weight), name
        assert bool((value_OI[own_OI == 0] == 0).all()) == (merge == "zeros-kept")
        assert bool((linear.weight[0, own_OI[0] == torch.finfo(kept).smallest_normal] != 0).all()), "no zero was there"


@pytest.mark.parametrize("merge", MERGES)
def test_weights_under_former_names_keep_their_dtype_where_others_have_a_wider_one(
    merge: str, parts: Parts, tmp_path: Path
) -> None:
    stored = {f"former.{name}": tensor for name, tensor in stored_tensors(parts.checkpoint).items()}
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16, torch.float32} and parts.adapter is not None
    model = load_model(parts.checkpoint, widest(stored), CPU)
    merged, _ = with_adapter(model, parts.adapter, MERGES[merge], stored)
    write_as_stored(merged, stored, tmp_path / "written")
    written, before = stored_tensors(tmp_path / "written"), stored_tensors(parts.checkpoint)
    assert {name: tensor.dtype for name, tensor in written.items() if "norm" not in name} == {
        name: tensor.dtype for name, tensor in before.items() if "norm" not in name
    }


def test_the_place_is_looked_at_before_anything_is_merged(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_module, "load_model", None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    with pytest.raises(BadInput, match="is not empty"):
        export_cell(parts, tmp_path / "full", ExportOptions(), "zeros-kept")
    for out in (parts.checkpoint, parts.checkpoint.parent):
        with pytest.raises(BadInput, match="contain one another"):
            export_cell(parts, out, ExportOptions(overwrite=True), "zeros-kept")


def test_former_names_are_replaced_and_every_dtype_stays(parts: Parts, tmp_path: Path) -> None:
    before = load_file(parts.checkpoint / "model.safetensors")
    (tmp_path / "former").mkdir()
    for path in parts.checkpoint.iterdir():
        if path.suffix == ".json" and path.name != MANIFEST:
            (tmp_path / "former" / path.name).write_bytes(path.read_bytes())
    former = {name.removeprefix("model."): value for name, value in before.items()}
    save_file(former, tmp_path / "former" / "model.safetensors", {"format": "pt"})
    source = open_source(tmp_path / "former", tmp_path)
    assert source.converted
    found = {name: tensor.read() for name, tensor in source.stored.items()}
    assert found.keys() == before.keys()
    assert all(found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in before.items())
