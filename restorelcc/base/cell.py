"""One cell of the grid: which model, pruned how, restored with what share of its heads or by which other method.

And checks of the names that cells are made of: a model's key, a head ratio's label.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from restorelcc.base.errors import BadInput

_ALIAS = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
RESERVED_ALIASES = ("inputs", "corpus", "metrics", "report", "logs")


def check_alias(alias: object) -> str:
    """A model's key under `models`: [a-z0-9-], none of the reserved folder names."""
    if not isinstance(alias, str) or not _ALIAS.fullmatch(alias):
        raise BadInput(f"models has the key {alias!r}: use lower-case letters, digits and single dashes only")
    if alias in RESERVED_ALIASES:
        raise BadInput(f"models has the key {alias!r}, which names a folder of data/: rename it")
    return alias


AUTO = "auto"  # in place of a head ratio: `compensate` chooses it


def ratio_label(value: object) -> str:
    """The text DVC puts into stage names and paths for a value of grid.head_ratio. Raises BadInput outside (0, 1]."""
    if value == AUTO:
        return AUTO
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise BadInput(
            f"grid.head_ratio has {value!r}: it is the share of attention heads that get a compensation, "
            "give a number above 0 and at most 1 (for example 0.10), or auto"
        )
    return str(value)


@dataclass(frozen=True)
class Cell:
    """Names of one grid cell; each is None where a stage comes before it, head ratio or recovery too."""

    model: str
    pruning: str | None = None
    head_ratio: str | None = None
    recovery: str | None = None

    @property
    def kind(self) -> str:
        """dense, pruned, restored or recovered."""
        if self.pruning is None:
            return "dense"
        if self.recovery is not None:
            return "recovered"
        return "pruned" if self.head_ratio is None else "restored"

    @property
    def evaluation(self) -> str:
        """The stage that evaluates the cell, as dvc.yaml names it."""
        parts = (self.model, self.pruning, self.head_ratio, self.recovery)
        return f"evaluate_{self.kind}@{'-'.join(filter(None, parts))}"

    def __str__(self) -> str:
        return " ".join(filter(None, (self.model, self.pruning, self.head_ratio, self.recovery)))


def evaluated_again(*cells: Cell) -> str:
    """The command that evaluates cells again, whether DVC sees a change or not."""
    return f"dvc repro --force --single-item {' '.join(dict.fromkeys(cell.evaluation for cell in cells))}"
