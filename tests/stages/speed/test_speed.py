"""The stage `speed`: the right versions with the right bytes, the 8-bit product, and what the report makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from restorelcc.base.cell import Cell
from restorelcc.base.digest import model_digest
from restorelcc.base.documents import read_document, write_document
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.prunings import parse_pruning
from restorelcc.compensation.compensation import Compensation
from restorelcc.compensation.file import write_compensation
from restorelcc.models.architectures import head_layout
from restorelcc.models.checkpoints import save_checkpoint
from restorelcc.pipeline.outcome import outcome, place
from restorelcc.pipeline.params import load_params
from restorelcc.stages.prune.prune import prune_model
from restorelcc.stages.report import ReportConfig
from restorelcc.stages.report.stage import run as run_report
from restorelcc.stages.speed import SpeedConfig
from restorelcc.stages.speed.measure import Int8Linear, Version, measured
from restorelcc.stages.speed.stage import run
from tests import pico
from tests.dag import ROOT
from tests.recovery_project import ENTRY
from tests.stages.report.cells import write_grid

SHORT = SpeedConfig(turns=3, prompt=2, new_tokens=1, prefill=8)


def _project(root: Path, pruning: str, family: str = "llama", **config: int) -> tuple[Layout, Cell]:
    """A dense and a pruned pico model, with an offset for every head."""
    layout, cell = Layout(root), Cell("pico", pruning, "0.5")
    model = pico.pico(family, **(config or {"hidden_size": 64, "intermediate_size": 96}))
    save_checkpoint(layout.dense(cell), model, pico.word_tokenizer())
    prune_model(model, parse_pruning(pruning), [pico.tokens()])
    save_checkpoint(layout.pruned(cell), model, pico.word_tokenizer())
    heads = head_layout(model)
    offset_LHD = torch.full((heads.layers, heads.heads, heads.head_dim), 0.01)
    metadata = {"pruned": model_digest(layout.pruned(cell)), "model": "pico"}
    layout.compensation(cell).parent.mkdir()
    write_compensation(layout.compensation(cell), Compensation(offset_LHD), metadata)
    return layout, cell


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("RESTORELCC_PACKED_KERNEL", "0")


def test_each_version_is_timed_in_turns_and_its_bytes_are_those_of_its_files(tmp_path: Path) -> None:
    layout, cell = _project(tmp_path, "wanda-0.5")
    run(cell, SHORT, ENTRY, layout)
    found = read_document(layout.speed(cell))
    versions = found["versions"]
    assert list(versions) == ["dense", "pruned", "restored", "packed", "dense in 8 bits"]
    assert versions["dense"]["file_bytes"] == sum(f.stat().st_size for f in layout.dense(cell).glob("*.safetensors"))
    assert versions["restored"]["file_bytes"] > versions["pruned"]["file_bytes"], "biases were added"
    assert versions["packed"]["file_bytes"] < versions["pruned"]["file_bytes"]
    assert versions["dense in 8 bits"]["file_bytes"] is None
    assert versions["dense in 8 bits"]["memory_bytes"] < versions["dense"]["memory_bytes"]
    for version in versions.values():
        assert version["decode"]["turns"] == version["prefill"]["turns"] == 3
        assert version["decode"]["tokens_per_second"] > 0
    assert versions["dense"]["decode"]["times_dense"] == [1, 1, 1]
    assert found["parents"]["pruned"] == model_digest(layout.pruned(cell))
    assert not list(layout.work.iterdir()), "nothing is left of what was timed"
    assert "packed" in outcome("speed", layout, cell)


def test_a_model_without_heads_and_channels_is_timed_cut_as_well(tmp_path: Path) -> None:
    layout, cell = _project(tmp_path, "slimgpt-0.5")
    run(cell, SHORT, ENTRY, layout)
    versions = read_document(layout.speed(cell))["versions"]
    assert versions["sliced"]["memory_bytes"] < versions["restored"]["memory_bytes"]
    assert list(versions)[:4] == ["dense", "pruned", "restored", "sliced"]


def test_weights_of_conv1d_are_rounded_as_well(tmp_path: Path) -> None:
    layout, cell = _project(tmp_path, "wanda-0.5", "gpt2", n_positions=64)
    run(cell, SHORT, ENTRY, layout)
    assert "dense in 8 bits" in read_document(layout.speed(cell))["versions"]


def test_more_tokens_than_the_model_takes_in_are_cut_or_refused(tmp_path: Path) -> None:
    layout, cell = _project(tmp_path, "wanda-0.5", "gpt2", n_positions=64)
    with pytest.raises(BadInput, match=r"speed\.prompt \+ new_tokens is 65, and the model takes in 64 tokens"):
        run(cell, SHORT.model_copy(update={"prompt": 64}), ENTRY, layout)
    assert not layout.speed(cell).exists()
    run(cell, SHORT.model_copy(update={"prefill": 1000}), ENTRY, layout)
    assert read_document(layout.speed(cell))["settings"]["prefill"] == 64


def test_a_compensation_of_another_model_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    layout, cell = _project(tmp_path, "wanda-0.5")
    save_checkpoint(layout.pruned(cell), pico.pico("llama"), pico.word_tokenizer())
    with pytest.raises(BadInput, match="another"):
        run(cell, SHORT, ENTRY, layout)
    assert not layout.speed(cell).exists()


def test_eight_bits_are_the_nearest_with_one_scale_a_row() -> None:
    linear = nn.Linear(64, 32)
    rounded = Int8Linear(linear)
    scale_O = linear.weight.abs().amax(dim=1) / 127
    wanted_OI = (linear.weight / scale_O[:, None]).round() * scale_O.bfloat16().float()[:, None]
    x = torch.randn(3, 5, 64)
    with torch.no_grad():
        found, expected = rounded(x), x.bfloat16().float() @ wanted_OI.T + linear.bias
    assert found.shape == (3, 5, 32)
    assert found.dtype == x.dtype
    assert (found - expected).abs().max() < 0.02 * expected.abs().max(), "products are rounded to bfloat16"
    zero = Int8Linear(nn.Linear(64, 32, bias=False).requires_grad_(False))
    zero.weight.zero_()
    assert not zero(x).any()


def test_ratios_are_of_the_same_turn() -> None:
    """A machine that is twice as busy in the second turn slows both models: the ratio stays."""
    model = pico.pico("llama")
    dense, other = Version("dense", model, 10, [2.0, 4.0, 2.0], [1.0, 1.0, 1.0]), Version("other", model, 5)
    other.decode, other.prefill = [1.0, 2.0, 1.0], [0.5, 0.25, 0.5]
    found = measured(other, dense)
    assert found["decode"] == {"tokens_per_second": 1.0, "times_dense": [2.0, 2.0, 2.0], "turns": 3}
    assert found["prefill"]["times_dense"][1] == 2.0


def test_the_report_shows_what_was_timed_of_the_model_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("restorelcc.stages.report.figures.static_files", lambda *_: {})
    layout, cell = _project(tmp_path, "wanda-0.5")
    run(cell, SHORT, ENTRY, layout)
    write_grid(layout)
    shown = Cell("a", "wanda-0.5", "0.25")
    cells = [Cell("a"), Cell("a", "wanda-0.5"), shown]
    document = read_document(layout.speed(cell)) | {"model": "a", "head_ratio": "0.25"}
    beside, timed = read_document(layout.details(shown)), document["parents"]
    digests = {"model": timed["pruned"], "compensation": timed["compensation"]}
    write_document(layout.details(shown), beside | {"digests": digests})
    write_document(layout.speed(shown), document)
    results = run_report(cells, ReportConfig(), layout)
    assert [each["head_ratio"] for each in results.groups[0].speeds] == ["0.25"]
    for name in ("report.md", "report.html"):
        text = (layout.report / name).read_text()
        assert "packed" in text
        assert "dense in 8 bits" in text
    assert len(read_document(layout.report / "results.json")["speed"]) == 1
    write_document(layout.speed(shown), document | {"head_ratio": "0.1"})
    with pytest.raises(BadInput, match=r"is not of a wanda-0\.5 0\.25"):
        run_report(cells, ReportConfig(), layout)
    write_document(layout.speed(shown), document)
    capfd.readouterr()
    for part in digests:
        write_document(layout.details(shown), beside | {"digests": digests | {part: "c0ffee"}})
        assert run_report(cells, ReportConfig(), layout).groups[0].speeds == []
        told = capfd.readouterr().err
        assert "heads-0.25.speed.json was timed on another model than the one evaluated, and is left out" in told
        assert "run `restorelcc speed --model a --pruning wanda-0.5 --head-ratio 0.25`" in told


def test_only_head_ratios_of_the_grid_are_timed() -> None:
    params = load_params(ROOT / "params.yaml", ("grid.speed=[0.25]",))
    timed = Cell("tiny", "wanda-0.5", "0.25")
    assert place(params, "speed", timed).startswith("[14/14] speed")
    assert place(params, "speed", replace(timed, head_ratio="0.1")) == "speed tiny wanda-0.5 0.1"
    with pytest.raises(BadInput, match=r"grid\.speed has 0\.5, which grid\.head_ratio has not"):
        load_params(ROOT / "params.yaml", ("grid.speed=[0.5]",))
