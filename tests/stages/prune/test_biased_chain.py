"""A pruned checkpoint with biases goes through every further stage and comes out with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from restorelcc.base.cell import Cell
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.tables import CONTRAST, write_table
from restorelcc.compensation.compensation import Compensation
from restorelcc.compensation.file import read_compensation, write_compensation
from restorelcc.compensation.fold import fold
from restorelcc.compensation.hooks import compensated
from restorelcc.models.checkpoints import load_model
from restorelcc.release.export.apply import apply_compensation, remove_compensation
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from restorelcc.release.inspect.inspection import inspect_checkpoint
from restorelcc.release.slicing import sliced
from restorelcc.release.verify.verify import subject, verify
from restorelcc.stages.capture.stage import run_dense as capture_dense
from restorelcc.stages.capture.stage import run_pruned as capture_pruned
from restorelcc.stages.compensate import CompensateConfig
from restorelcc.stages.compensate.stage import run as compensate
from restorelcc.stages.evaluate.stage import run_dense, run_pruned, run_restored
from restorelcc.stages.extract import ExtractConfig
from restorelcc.stages.extract.stage import run as extract
from restorelcc.stages.probe import ProbeConfig
from restorelcc.stages.probe.stage import run as probe
from restorelcc.stages.prune import ExternalCheckpoint, PruneConfig
from restorelcc.stages.prune.stage import run as run_prune
from restorelcc.stages.recover import RecoverConfig
from restorelcc.stages.recover.result import Inputs
from restorelcc.stages.recover.stage import run as run_recover
from restorelcc.training.attached import site_linears
from restorelcc.training.closed_form import mean_inputs
from tests import pico
from tests.fresh import verify_in_forks
from tests.recovery_project import ENTRY, EVALUATE, recovery_project
from tests.stages.capture.project import CONFIG as CAPTURE
from tests.stages.capture.project import tuples
from tests.stages.prune.project import CONFIG

CPU = torch.device("cpu")
FAMILIES = ("llama", "qwen2", "opt")  # a key turns biases on; written as llama; biases of its own
WRITTEN = {"llama": "llama", "qwen2": "llama", "opt": "opt"}
CELL = Cell("pico", "refined-0.5", "0.25")


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", params=FAMILIES)
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Layout]]:
    """A project in which every stage up to compensate has run behind `refined`."""
    family = request.param
    with pytest.MonkeyPatch.context() as patch:
        if family == "qwen2":  # its own class of tokenizer cannot be words
            patch.setattr(AutoTokenizer, "from_pretrained", lambda *_args, **_keys: pico.word_tokenizer())
        yield family, _compensated(family, tmp_path_factory.mktemp(family))


def _compensated(family: str, root: Path) -> Layout:
    layout = recovery_project(root, family=family)
    write_table(layout.corpus(CELL) / "contrast.parquet", tuples(12), CONTRAST)
    run_prune(replace(CELL, head_ratio=None), CONFIG, ENTRY, layout)
    for capture in (capture_dense, capture_pruned):
        capture(CELL, CAPTURE, ENTRY, layout)
    extract(CELL, ExtractConfig(), ENTRY, layout)
    probe(CELL, ProbeConfig(steps=5, scores=("paper",)), ENTRY, layout)
    compensate(
        CELL,
        CompensateConfig(learning_rates=(0.3, 0.1, 0.03, 0.01, 0.003), epochs=6, batch_size=8, max_tokens=16),
        ENTRY,
        layout,
    )
    return layout


def test_the_checkpoint_says_that_it_carries_biases(chain: tuple[str, Layout]) -> None:
    family, layout = chain
    found = inspect_checkpoint(layout.pruned(CELL))
    assert found["model_type"] == WRITTEN[family]
    linears = len(found["tensors"]) // pico.LAYERS
    assert len(found["biases"]) == linears and set(found["biases"].values()) == {pico.LAYERS}
    document = json.loads((layout.pruned(CELL) / "sparsity.json").read_text())
    assert document["biases_changed"] == linears * pico.LAYERS


def test_hooked_folded_and_exported_agree_and_verify(chain: tuple[str, Layout], tmp_path: Path) -> None:
    _, layout = chain
    pruned, file = layout.pruned(CELL), layout.compensation(CELL)
    compensation, _ = read_compensation(file)
    assert compensation.offset_LHD.any()
    tokens, model = pico.tokens(), load_model(pruned, torch.float32, CPU)
    with torch.no_grad():
        before = model(input_ids=tokens).logits
        with compensated(model, compensation):
            hooked = model(input_ids=tokens).logits
        fold(model, compensation)
        export_checkpoint(pruned, file, tmp_path / "out", ExportOptions())
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        for other in (model, exported):
            torch.testing.assert_close(other(input_ids=tokens).logits, hooked, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(hooked, before, atol=1e-4)
    with verify_in_forks():
        dict(verify(subject(tmp_path / "out", pruned, file)))
    untouched = [
        name for name in load_file(pruned / "model.safetensors") if "fc1.bias" in name or "up_proj.bias" in name
    ]
    was, now = (load_file(folder / "model.safetensors") for folder in (pruned, tmp_path / "out"))
    assert untouched and all(torch.equal(was[name], now[name]) and was[name].any() for name in untouched)


def test_taken_out_again_the_pruned_checkpoint_is_byte_identical(chain: tuple[str, Layout], tmp_path: Path) -> None:
    _, layout = chain
    before = _files(layout.pruned(CELL))
    apply_compensation(layout.pruned(CELL), layout.compensation(CELL), tmp_path / "in", ExportOptions(verbatim=True))
    remove_compensation(tmp_path / "in", tmp_path / "out")
    assert _files(tmp_path / "out") == before


def test_pruned_and_restored_are_evaluated_with_their_biases(chain: tuple[str, Layout]) -> None:
    _, layout = chain
    run_dense(Cell("pico"), EVALUATE, ENTRY, layout)
    run_pruned(replace(CELL, head_ratio=None), EVALUATE, ENTRY, layout)
    run_restored(CELL, EVALUATE, ENTRY, layout)
    metrics = json.loads(layout.metrics(CELL).read_text())
    assert metrics["sparsity"] == pytest.approx(0.5)
    added = json.loads((layout.pruned(CELL) / "sparsity.json").read_text())["parameters_added"]
    dense = sum(part.numel() for part in load_model(layout.dense(CELL), torch.float32, CPU).parameters())
    pruned = json.loads(layout.metrics(replace(CELL, head_ratio=None)).read_text())
    assert pruned["params_added"] == added == pruned["params_total"] - dense
    assert metrics["params_added"] == added, "the compensation goes into biases that are there"
    assert (added > 0) == (chain[0] != "opt"), "an OPT has all of these biases already"
    assert metrics["perplexity"]["value"] > 0


def test_it_is_an_external_checkpoint_like_any_other(chain: tuple[str, Layout]) -> None:
    _, layout = chain
    external = {"pico": {"mine": ExternalCheckpoint(source=str(layout.pruned(CELL)))}}
    config = PruneConfig.model_validate(CONFIG.model_dump() | {"external": external})
    cell = Cell("pico", "external-mine")
    run_prune(cell, config, ENTRY, layout)
    ours, theirs = (json.loads((layout.pruned(one) / "sparsity.json").read_text()) for one in (CELL, cell))
    assert theirs["biases_changed"] == ours["biases_changed"] and theirs["achieved"] == ours["achieved"]
    first = next(iter(ours["tensors"]))
    # The mean that the bias takes up is that of all tokens, and so is the sample here.
    assert theirs["tensors"][first]["error"] == pytest.approx(ours["tensors"][first]["error"], rel=1e-4)


def test_a_mean_shift_does_not_count_twice_what_the_biases_hold(chain: tuple[str, Layout]) -> None:
    _, layout = chain
    cell = Cell("pico", "refined-0.5", recovery="meanshift")
    run_recover(cell, RecoverConfig(max_tokens=16), ENTRY, layout)
    shift, _ = read_compensation(layout.recovered(cell) / "compensation.safetensors")
    dense, pruned = (load_model(f, torch.float32, CPU) for f in (layout.dense(CELL), layout.pruned(CELL)))
    inputs = Inputs(cell, RecoverConfig(), ENTRY, layout, None)  # type: ignore[arg-type]
    ours, theirs = (site_linears(model, ("o", "down")) for model in (dense, pruned))
    means = mean_inputs(dense, ours, inputs.calibration(), "test")
    for site, bias in shift.sites.items():
        name, mean = f"{site.layer}.{site.linear}", means[f"{site.layer}.{site.linear}"].float()
        torch.testing.assert_close(theirs[name](mean) + bias, ours[name](mean), rtol=1e-4, atol=1e-5)


def test_nothing_is_cut_out_of_it(chain: tuple[str, Layout]) -> None:
    _, layout = chain
    with pytest.raises(BadInput, match="no head and no channel that is removed"):
        sliced(load_model(layout.pruned(CELL), torch.float32, CPU))


def test_a_compensation_of_another_pruned_model_is_refused(chain: tuple[str, Layout], tmp_path: Path) -> None:
    _, layout = chain
    compensation, metadata = read_compensation(layout.compensation(CELL))
    other = Compensation(compensation.offset_LHD.clone(), dict(compensation.sites))
    write_compensation(tmp_path / "other.safetensors", other, metadata | {"pruned": "0" * 64})
    with pytest.raises(BadInput):
        export_checkpoint(layout.pruned(CELL), tmp_path / "other.safetensors", tmp_path / "out", ExportOptions())
