"""Names of prunings: `<pruner>-<sparsity>`, for example wanda-0.5, sparsegpt-2of4; or `external-<name>`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from restorelcc.base.cell import check_name
from restorelcc.base.errors import BadInput

# Structured pruners remove whole heads and channels, so an N:M pattern means nothing to them.
UNSTRUCTURED_PRUNERS = ("magnitude", "wanda", "sparsegpt", "refined")
STRUCTURED_PRUNERS = ("slimgpt",)
PRUNERS = UNSTRUCTURED_PRUNERS + STRUCTURED_PRUNERS
EXTERNAL = "external"  # a checkpoint that another tool pruned, named under prune.external

_EXTERNAL = re.compile(r"external-(?P<name>[a-z0-9]+(-[a-z0-9]+)*)")
_PRUNING = re.compile(
    r"(?P<pruner>[a-z]+)-(?:(?P<keep>[0-9]{1,4})of(?P<group>[0-9]{1,4})|(?P<fraction>[0-9]{0,4}\.?[0-9]{1,6}))"
)


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
    """`<pruner>-<fraction>`, `<pruner>-NofM` or `external-<name>`. Raises BadInput naming grid.pruning and the fix.

    Every sparsity has one spelling: wanda-0.50 would be computed and reported beside wanda-0.5 as if it were another.
    """
    if isinstance(name, str) and (external := _EXTERNAL.fullmatch(name)):
        check_name("grid.pruning has an external checkpoint", external["name"])
        return Pruning(name, EXTERNAL, Sparsity(0.0), external["name"])
    match = _PRUNING.fullmatch(name) if isinstance(name, str) else None
    if not match:
        raise BadInput(
            f"grid.pruning has {str(name)[:80]!r}, which is not <pruner>-<sparsity>: write for example wanda-0.5 "
            "(6 decimals at most) or wanda-2of4, or external-<name> with <name> in lower-case letters, digits and "
            "single dashes"
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
        _check_spelling(name, f"{match['pruner']}-0.{match['fraction'].partition('.')[2].rstrip('0')}")
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
    _check_spelling(name, f"{match['pruner']}-{keep}of{group}")
    return Sparsity(1 - keep / group, keep, group)


def _check_spelling(name: str, canonical: str) -> None:
    if name != canonical:
        raise BadInput(f"grid.pruning has {name!r}, another spelling of {canonical}: write {canonical}")
