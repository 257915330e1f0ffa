"""Names of prunings: `<pruner>-<sparsity>`, for example wanda-0.5, magnitude-2of4."""

from __future__ import annotations

import re
from dataclasses import dataclass

from restorelcc.core.errors import BadInput

# Structured pruners remove whole heads and channels, so an N:M pattern means nothing to them.
UNSTRUCTURED_PRUNERS = ("magnitude", "wanda")
STRUCTURED_PRUNERS: tuple[str, ...] = ()
PRUNERS = UNSTRUCTURED_PRUNERS + STRUCTURED_PRUNERS

_PRUNING = re.compile(r"(?P<pruner>[a-z]+)-(?:(?P<keep>\d+)of(?P<group>\d+)|(?P<fraction>\d*\.?\d+))")


@dataclass(frozen=True)
class Sparsity:
    """How much to remove: a fraction of every row, or N:M, which KEEPS `keep` of every `group` weights of a row."""

    fraction: float
    keep: int | None = None
    group: int | None = None

    @property
    def is_pattern(self) -> bool:
        return self.group is not None

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}" if self.is_pattern else f"{self.fraction:g}"


@dataclass(frozen=True)
class Pruning:
    """A parsed pruning name such as `wanda-0.5` (half of every row removed) or `wanda-2of4` (2 of 4 kept)."""

    name: str
    pruner: str
    sparsity: Sparsity


def parse_pruning(name: object) -> Pruning:
    """`<pruner>-<fraction>` or `<pruner>-NofM` to a Pruning. Raises BadInput naming grid.pruning and the fix."""
    match = _PRUNING.fullmatch(name) if isinstance(name, str) else None
    if not match:
        raise BadInput(
            f"grid.pruning has {name!r}, which is not <pruner>-<sparsity>: write for example wanda-0.5 or wanda-2of4"
        )
    pruner = match["pruner"]
    if pruner not in PRUNERS:
        raise BadInput(f"grid.pruning has {name!r}, but there is no pruner {pruner!r}: use one of {', '.join(PRUNERS)}")
    return Pruning(match.string, pruner, _parse_sparsity(match, structured=pruner in STRUCTURED_PRUNERS))


def _parse_sparsity(match: re.Match[str], *, structured: bool) -> Sparsity:
    name = match.string
    if match["group"] is None:
        fraction = float(match["fraction"])
        if not 0 < fraction < 1:
            raise BadInput(
                f"grid.pruning has {name!r}: the sparsity is the fraction removed, give a number between 0 and 1"
            )
        return Sparsity(fraction)
    keep, group = int(match["keep"]), int(match["group"])
    if structured:
        raise BadInput(
            f"grid.pruning has {name!r}: {match['pruner']} removes whole heads and channels, give a fraction"
        )
    if not 0 < keep < group:
        raise BadInput(
            f"grid.pruning has {name!r}: NofM keeps N of every M weights, so N must be at least 1 and less than M "
            f"(for example {match['pruner']}-2of4)"
        )
    return Sparsity(1 - keep / group, keep, group)
