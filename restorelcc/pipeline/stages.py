"""The only registry of stages: each stage's function, the axes of its cells, its outputs, and whether it loads a model.

The commands and `restore` follow it; tests/test_dag.py asserts that dvc.yaml agrees with it.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from restorelcc.base.cell import Cell, ratio_label
from restorelcc.base.layout import Layout

if TYPE_CHECKING:
    from restorelcc.pipeline.params import Grid


@dataclass(frozen=True)
class Stage:
    """One stage."""

    folder: str  # below restorelcc/stages; also its section of params.yaml
    function: str  # of its stage.py: (cell, section, the model's entry, layout) -> None
    axes: tuple[str, ...]  # of the grid, that a cell of it names
    outputs: tuple[str, ...]  # methods of Layout; metrics come last
    gives: str  # what one gets of it, as `restorelcc --help` says it
    timed: bool = False  # its head ratios are those of grid.speed
    loads_model: bool = False  # it may, and is then on a GPU where there is one (dvc.yaml says it to the flow)

    @property
    def module(self) -> str:
        return f"restorelcc.stages.{self.folder}.stage"

    def imported(self) -> Callable[..., None]:
        """The function; imported only now, so that --help and a refusal of bad input do not wait for torch."""
        gc.disable()  # imports make objects that stay: collecting among them costs a second and frees nothing
        function: Callable[..., None] = getattr(importlib.import_module(self.module), self.function)
        gc.freeze()
        gc.enable()
        return function

    @property
    def matrix(self) -> dict[str, str]:
        """Axis to the list of the grid that its values come from."""
        return {axis: "speed" if self.timed and axis == "head_ratio" else axis for axis in self.axes}

    def paths(self, layout: Layout, cell: Cell) -> list[Path]:
        """What it writes for a cell."""
        return [getattr(layout, name)(cell) for name in self.outputs]


PER_MODEL, PER_PRUNING = ("model",), ("model", "pruning")
PER_RATIO, PER_RECOVERY = ("model", "pruning", "head_ratio"), ("model", "pruning", "recovery")
_EVALUATED = ("samples", "text_scores", "details", "metrics")
# `inputs` and `report`, which are of the whole params.yaml, are verbs of their own.
STAGES: dict[str, Stage] = {
    "corpus": Stage(
        "corpus", "run", PER_MODEL, ("corpus", "sources"), "The texts, pairs and tasks that the other stages use."
    ),
    "dense": Stage("dense", "run", PER_MODEL, ("dense",), "The dense checkpoint, or a reference to it."),
    "capture_dense": Stage(
        "capture",
        "run_dense",
        PER_MODEL,
        ("dense_activations",),
        "Outputs of every attention head of the dense model, as Parquet.",
        loads_model=True,
    ),
    "prune": Stage(
        "prune", "run", PER_PRUNING, ("pruned",), "A sparse checkpoint, and the zeros of each layer.", loads_model=True
    ),
    "capture_pruned": Stage(
        "capture",
        "run_pruned",
        PER_PRUNING,
        ("pruned_activations",),
        "The same outputs of the pruned model, on the same texts.",
        loads_model=True,
    ),
    "extract": Stage("extract", "run", PER_PRUNING, ("components",), "The components that each head lost, by an SVD."),
    "probe": Stage(
        "probe", "run", PER_PRUNING, ("heads",), "The heads ranked by how much they matter.", loads_model=True
    ),
    "compensate": Stage(
        "compensate",
        "run",
        PER_RATIO,
        ("compensation", "training"),
        "A trained offset for each of the best heads.",
        loads_model=True,
    ),
    "recover": Stage(
        "recover", "run", PER_RECOVERY, ("recovered",), "Another way to recover, to compare with.", loads_model=True
    ),
    "evaluate_dense": Stage(
        "evaluate",
        "run_dense",
        PER_MODEL,
        ("samples", "text_scores", "details", "reference", "metrics"),
        "Accuracy and perplexity of the dense model.",
        loads_model=True,
    ),
    "evaluate_pruned": Stage(
        "evaluate", "run_pruned", PER_PRUNING, _EVALUATED, "The same of the pruned model.", loads_model=True
    ),
    "evaluate_restored": Stage(
        "evaluate",
        "run_restored",
        PER_RATIO,
        _EVALUATED,
        "The same of the restored model, and the share of the loss recovered.",
        loads_model=True,
    ),
    "evaluate_recovered": Stage(
        "evaluate",
        "run_recovered",
        PER_RECOVERY,
        _EVALUATED,
        "The same of the model that another way recovered.",
        loads_model=True,
    ),
    "speed": Stage(
        "speed",
        "run",
        PER_RATIO,
        ("speed",),
        "Bytes and tokens per second: dense, pruned, restored, packed, sliced, 8 bits.",
        timed=True,
        loads_model=True,
    ),
}
TOGETHER = ("compensate", "recover")  # stages that `accelerate launch` and torchrun may start in several processes


def grid_cells(grid: Grid) -> list[Cell]:
    """All cells that have metrics, in the order of the grid: dense, each pruning, its ratios and its recoveries."""
    cells = []
    for model in grid.model:
        cells.append(Cell(model))
        for pruning in grid.pruning:
            cells.append(Cell(model, pruning))
            cells += [Cell(model, pruning, ratio_label(ratio)) for ratio in grid.head_ratio]
            cells += [Cell(model, pruning, recovery=name) for name in grid.recovery]
    return cells
