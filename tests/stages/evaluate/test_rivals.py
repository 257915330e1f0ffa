"""The dense model rounded to few bits: the closed form, its bytes, and those of a pruned model without its zeros."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from restorelcc.base.cell import Cell
from restorelcc.base.documents import read_json, write_document
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import DataFiles, ModelEntry
from restorelcc.base.tables import write_texts
from restorelcc.models.architectures import prunable_linears
from restorelcc.models.checkpoints import save_checkpoint
from restorelcc.release.packed.matrix import pack
from restorelcc.stages.evaluate import EvaluateConfig
from restorelcc.stages.evaluate.rivals import (
    ROUNDINGS,
    Rounding,
    packed_bytes,
    round_linears,
    rounded_bytes,
    rounded_weight,
)
from restorelcc.stages.evaluate.stage import run_dense
from tests import pico
from tests.stages.evaluate.own_tasks import write_task

CELL = Cell("m")
ENTRY = ModelEntry(source="some/model", threads=1, data=DataFiles(calibration="c", instructions="i", heldout="h"))
CONFIG: dict[str, Any] = {"bootstrap_samples": 200, "sanity_gate": False}
CONFIG["generation"] = {"prompts": 4, "new_tokens": 8, "heldout_tokens": 60}


def test_rounding_is_the_nearest_multiple_of_a_rows_scale() -> None:
    weight = torch.tensor([[127.0, -64.4, 0.6, 0.4], [0.0, 0.0, 0.0, 0.0], [-63.5, 31.8, 0.2, 0.3]])
    found = rounded_weight(weight, Rounding(8, None))
    assert found.tolist() == [[127, -64, 1, 0], [0, 0, 0, 0], [-63.5, 32, 0, 0.5]]


def test_a_group_has_a_scale_of_its_own_and_the_last_one_may_be_short() -> None:
    weight = torch.tensor([[7.0, 3.4, -0.7, -0.35, 14.0]])
    found = rounded_weight(weight, Rounding(4, 2))
    scale = torch.tensor(0.1).half().item()
    assert found.tolist()[0][:2] == [7, 3]
    torch.testing.assert_close(found[0, 2:4], torch.tensor([-7 * scale, -4 * scale]))
    assert found[0, 4] == 14


@pytest.mark.parametrize("name", ROUNDINGS)
def test_no_weight_moves_by_more_than_half_a_step(name: str) -> None:
    rounding = ROUNDINGS[name]
    weight = torch.randn(5, 200, generator=torch.Generator().manual_seed(0))
    found, most = rounded_weight(weight, rounding), 2 ** (rounding.bits - 1) - 1
    for start in range(0, 200, rounding.group or 200):
        part = slice(start, start + (rounding.group or 200))
        step = weight[:, part].abs().amax(dim=1, keepdim=True) / most
        assert ((found - weight)[:, part].abs() <= 0.51 * step).all()
        assert all(len(row.unique()) <= 2**rounding.bits for row in found[:, part])


def test_bytes_are_those_of_the_bits_and_the_scales() -> None:
    assert ROUNDINGS["int8"].bytes_of(3, 100) == 3 * (100 + 2)
    assert ROUNDINGS["int4"].bytes_of(3, 100) == 3 * (50 + 2 * 2)
    model = pico.pico()
    linears = [linear for _, _, linear in prunable_linears(model)]
    other = sum(parameter.numel() for parameter in model.parameters()) - sum(each.weight.numel() for each in linears)
    whole = 4 * sum(parameter.numel() for parameter in model.parameters())
    expected = 4 * other + sum(each.out_features * (each.in_features + 2) for each in linears)
    assert rounded_bytes(model, ROUNDINGS["int8"], whole) == expected


def test_every_linear_is_rounded_and_nothing_else() -> None:
    model, stock = pico.pico(), pico.pico()
    round_linears(model, ROUNDINGS["int4"])
    names = {name for name, _ in stock.named_parameters()}
    changed = {name for name in names if not torch.equal(model.get_parameter(name), stock.get_parameter(name))}
    targeted = {id(linear.weight) for _, _, linear in prunable_linears(stock)}
    assert changed == {name for name in names if id(stock.get_parameter(name)) in targeted}


def test_a_pruned_model_takes_the_bytes_of_its_packed_file() -> None:
    model = pico.pico(hidden_size=96, intermediate_size=160)
    whole = 4 * sum(parameter.numel() for parameter in model.parameters())
    saved = 0
    for number, (_, _, linear) in enumerate(prunable_linears(model)):
        if number % 3:  # every third stays dense, and is not packed
            linear.weight[torch.rand_like(linear.weight) < 0.5] = 0
        packed = pack(linear.weight.numpy().view(np.uint32))
        assert (packed is None) == (number % 3 == 0)
        if packed is not None:
            saved += linear.weight.nbytes - sum(part.nbytes for part in packed.parts().values())
    assert packed_bytes(model, whole) == whole - saved


def _dense(root: Path) -> Layout:
    layout = Layout(root)
    save_checkpoint(layout.dense(CELL), pico.pico(), pico.word_tokenizer())
    texts = [" ".join(f"w{3 + (7 * row + 5 * word) % 60}" for word in range(12)) for row in range(8)]
    write_texts(layout.corpus(CELL) / "heldout.parquet", texts)
    write_document(layout.corpus(CELL) / "tasks" / "tasks.json", {"embedded": []})
    return layout


def test_the_tasks_that_count_for_the_dense_model_count_for_every_rival(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a task's scores lie in [0, 1] could turn out otherwise for each of them."""
    layout, kept = _dense(tmp_path), iter([{"choice": False}])
    write_task(tmp_path / "own", "choice")
    monkeypatch.setattr("restorelcc.stages.evaluate.evaluation.averaged_tasks", lambda *_: next(kept))
    run_dense(CELL, EvaluateConfig.model_validate(CONFIG), ENTRY.model_copy(update={"tasks": ("own",)}), layout)
    rivals = read_json(layout.details(CELL))["rivals"]
    assert set(rivals) == {"int8", "int4"}
    for measured in (read_json(layout.metrics(CELL)), *rivals.values()):
        assert (measured["tasks"]["choice"]["averaged"], measured["mean"]) == (False, None)


def test_the_dense_model_is_measured_with_its_rivals_and_its_own_metrics_stay(tmp_path: Path) -> None:
    layout, model, found = _dense(tmp_path), pico.pico(), {}
    for rivals in ((), ("int8", "int4")):
        config = EvaluateConfig.model_validate(CONFIG | {"rivals": rivals})
        run_dense(CELL, config, ENTRY, layout)
        files = layout.metrics(CELL).read_bytes(), layout.samples(CELL).read_bytes()
        found[rivals] = files, read_json(layout.details(CELL))
    (plain, without), (same, details) = found.values()
    assert plain == same, "metrics and items of the dense model are byte for byte the same"
    assert without["rivals"] == {}
    int8, int4 = details["rivals"]["int8"], details["rivals"]["int4"]
    whole = read_json(layout.metrics(CELL))
    assert int4["file_bytes"] < int8["file_bytes"] < whole["file_bytes"]
    exact = whole["perplexity"]["value"]
    assert all(0 < abs(each["perplexity"]["value"] / exact - 1) < 0.05 for each in (int8, int4))
    round_linears(model, ROUNDINGS["int8"])
    save_checkpoint(tmp_path / "rounded", model, pico.word_tokenizer())
    shutil.rmtree(layout.dense(CELL))
    shutil.copytree(tmp_path / "rounded", layout.dense(CELL))
    run_dense(CELL, EvaluateConfig.model_validate(CONFIG | {"rivals": ()}), ENTRY, layout)
    stored = read_json(layout.metrics(CELL))["perplexity"]
    assert int8["perplexity"]["value"] == pytest.approx(stored["value"], rel=1e-9)
