"""Names of prunings: `<pruner>-<sparsity>`, for example wanda-0.5, sparsegpt-2of4; or `external-<name>`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from restorelcc.base.errors import BadInput

# Structured pruners remove whole heads and channels, so an N:M pattern means nothing to them.
UNSTRUCTURED_PRUNERS = ("magnitude", "wanda", "sparsegpt", "refined")
STRUCTURED_PRUNERS = ("slimgpt",)
PRUNERS = UNSTRUCTURED_PRUNERS + STRUCTURED_PRUNERS
EXTERNAL = "external"  # a checkpoint that another tool pruned, named under prune.external

_EXTERNAL = re.compile(r"external-(?P<name>[a-z0-9]+(-[a-z0-9]+)*)")
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
    """A parsed pruning name such as `wanda-0.5` (half of every row removed) or `wanda-2of4` (2 of 4 kept).

    `external` is the checkpoint's key under prune.external where the pruner is `external`; its sparsity, which only
    the checkpoint tells, is then 0.
    """

    name: str
    pruner: str
    sparsity: Sparsity
    external: str | None = None


def parse_pruning(name: object) -> Pruning:
    """`<pruner>-<fraction>`, `<pruner>-NofM` or `external-<name>`. Raises BadInput naming grid.pruning and the fix."""
    if isinstance(name, str) and (external := _EXTERNAL.fullmatch(name)):
        return Pruning(name, EXTERNAL, Sparsity(0.0), external["name"])
    match = _PRUNING.fullmatch(name) if isinstance(name, str) else None
    if not match:
        raise BadInput(
            f"grid.pruning has {name!r}, which is not <pruner>-<sparsity>: write for example wanda-0.5 or wanda-2of4, "
            "or external-<name> with <name> in lower-case letters, digits and single dashes"
        )
    pruner = match["pruner"]
    if pruner not in PRUNERS:
        known = ", ".join((*PRUNERS, EXTERNAL))
        raise BadInput(f"grid.pruning has {name!r}, but there is no pruner {pruner!r}: use one of {known}")
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
