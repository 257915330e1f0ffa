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

    def __str__(self) -> str:
        return " ".join(filter(None, (self.model, self.pruning, self.head_ratio, self.baseline)))
