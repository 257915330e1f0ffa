"""One cell of the grid: which model, pruned how, restored with what share of its heads or by which other method.

And checks of the names that cells are made of: a model's key, a head ratio's label.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from restorelcc.base.errors import BadInput

LONGEST_NAME = 64  # characters; file names are made of three of them
_ALIAS = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_LEAST_RATIO = 0.0001  # below it Python writes a number as 1e-05, which no path should hold
# Folders of data/ and of a model, stages, and axes of the grid: as a model's name each could be read in two ways.
RESERVED_ALIASES = (
    *("inputs", "corpus", "dense", "prune", "pruned", "capture", "extract", "probe", "compensate", "recover"),
    *("recovered", "restored", "evaluate", "speed", "activations", "metrics", "report", "logs", "data", "models"),
    "grid",
)
# What Windows takes for a device, wherever such a file or folder would lie.
_DEVICES = ("con", "prn", "aux", "nul", *(f"{name}{number}" for name in ("com", "lpt") for number in range(1, 10)))


def check_name(where: str, name: object) -> str:
    """A name that a folder gets: [a-z0-9-], not too long, and none that Windows keeps for itself. Raises BadInput."""
    if not isinstance(name, str) or not _ALIAS.fullmatch(name):
        raise BadInput(f"{where} {str(name)[:80]!r}: use lower-case letters, digits and single dashes only")
    if len(name) > LONGEST_NAME:
        raise BadInput(f"{where} {name[:80]!r}, of {len(name)} characters: use {LONGEST_NAME} at most")
    if name in _DEVICES:
        raise BadInput(f"{where} {name!r}, which is a device on Windows, where no folder can have that name: rename it")
    return name


def check_alias(alias: object) -> str:
    """A model's key under `models`: [a-z0-9-], none of the names that folders and stages have. Raises BadInput."""
    name = check_name("models has the key", alias)
    if name in RESERVED_ALIASES:
        raise BadInput(f"models has the key {name!r}, which names a folder of data/ or a stage: rename it")
    return name


AUTO = "auto"  # in place of a head ratio: `compensate` chooses it


def ratio_label(value: object) -> str:
    """The text DVC puts into stage names and paths for a value of grid.head_ratio.

    Raises BadInput for what is no number from 0.0001 to 1, and not `auto`.
    """
    if value == AUTO:
        return AUTO
    if isinstance(value, bool) or not isinstance(value, int | float) or not _LEAST_RATIO <= value <= 1:
        raise BadInput(
            f"grid.head_ratio has {value!r}: it is the share of attention heads that get a compensation, "
            "give a number above 0 (0.0001 at least) and at most 1, for example 0.10, or auto"
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
