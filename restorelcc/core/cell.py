"""One cell of the grid: which model, pruned how, restored with what share of its heads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """Names of one grid cell; `pruning` and `head_ratio` are None where a stage comes before them."""

    model: str
    pruning: str | None = None
    head_ratio: str | None = None

    def __str__(self) -> str:
        return " ".join(filter(None, (self.model, self.pruning, self.head_ratio)))
