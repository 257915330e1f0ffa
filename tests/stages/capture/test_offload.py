"""A model that does not fit: weights on disk, read when they are needed, give the same activations."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from restorelcc.base.cell import Cell
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.models.checkpoints import Spread, load_model
from restorelcc.stages.capture.stage import run_dense
from tests.stages.capture.project import CELL, CONFIG, ENTRY, project

CPU = torch.device("cpu")


def _activations(layout: Layout) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(layout.dense_activations(CELL).iterdir())}


def test_a_capture_from_disk_equals_one_in_memory(tmp_path: Path) -> None:
    layout = project(tmp_path)
    run_dense(Cell("pico"), CONFIG, ENTRY, layout)
    in_memory = _activations(layout)
    entry = ENTRY.model_copy(update={"device_map": "auto", "max_memory": {"cpu": "20KB"}})
    with torch.no_grad():
        spread = Spread("auto", {"cpu": "20KB"}, layout.work)
        model = load_model(layout.dense(CELL), torch.float32, CPU, spread=spread)
        assert sum(parameter.device.type == "meta" for parameter in model.parameters()) > 20, "most of it is on disk"
    del model
    for path in layout.dense_activations(CELL).iterdir():
        path.unlink()
    run_dense(Cell("pico"), CONFIG, entry, layout)
    assert _activations(layout) == in_memory
    gc.collect()  # modules and their hooks refer to one another
    assert not list(layout.work.glob("offload-*")), "nothing is left of what was written for it"


def test_a_spread_that_does_not_hold_the_model_is_refused(tmp_path: Path) -> None:
    layout = project(tmp_path)
    with pytest.raises(BadInput, match=r"is left over.*raise max_memory"):
        load_model(layout.dense(CELL), torch.float32, CPU, spread=Spread("auto", {"cpu": "20KB"}))
    with pytest.raises(BadInput, match="no room for the embeddings"):
        load_model(layout.dense(CELL), torch.float32, CPU, spread=Spread("auto", {"cpu": "1KB"}, layout.work))
    whole = load_model(layout.dense(CELL), torch.float32, CPU, spread=Spread("auto", {}))
    assert whole.device.type == "cpu"
