"""One cell of the grid: which model, pruned how, restored with what share of its heads or by which baseline."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """Names of one grid cell; each is None where a stage comes before it, head ratio or baseline too."""

    model: str
    pruning: str | None = None
    head_ratio: str | None = None
    baseline: str | None = None

    @property
    def is_pruned(self) -> bool:
        """Whether the cell is a pruned model as it is, neither restored nor recovered by a baseline."""
        return self.pruning is not None and self.head_ratio is None and self.baseline is None

    @property
    def kind(self) -> str:
        """dense, pruned, restored or baseline."""
        if self.pruning is None:
            return "dense"
        return "pruned" if self.is_pruned else "baseline" if self.baseline else "restored"

    @property
    def evaluation(self) -> str:
        """The stage that evaluates the cell, as dvc.yaml names it."""
        parts = (self.model, self.pruning, self.head_ratio, self.baseline)
        return f"evaluate_{self.kind}@{'-'.join(filter(None, parts))}"

    def __str__(self) -> str:
        return " ".join(filter(None, (self.model, self.pruning, self.head_ratio, self.baseline)))


def evaluated_again(*cells: Cell) -> str:
    """The command that evaluates cells anew, whether DVC sees a change or not."""
    return f"dvc repro --force --single-item {' '.join(dict.fromkeys(cell.evaluation for cell in cells))}"
