"""N:M patterns of zeros, as records, cards and `inspect` name them: of every M neighbours in a row N at most are not 0.

Letters: O output features, I input features.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from restorelcc.base.documents import read_json

_ALWAYS = (4, 8)  # M that are looked for in any weight
_AT_MOST_HALF = (2, 16)  # the same, where half of the weights are removed: little of these sizes is held by chance

_PATTERN = re.compile("[0-9]{1,4}:[0-9]{1,4}")


def recorded_groups(pruned: Path) -> tuple[int, ...]:
    """The M that a checkpoint was pruned to, by the prune stage's own account of it; none where there is no such."""
    report = pruned / "sparsity.json"
    pattern = read_json(report).get("pattern") if report.is_file() else None
    return groups_of([pattern] if isinstance(pattern, str) and _PATTERN.fullmatch(pattern) else [])


def groups_of(patterns: Iterable[str]) -> tuple[int, ...]:
    """Every M of some N:M, in order."""
    return tuple(sorted({group for pattern in patterns if (group := int(pattern.partition(":")[2]))}))


def held_patterns(
    weight_OI: Any, densest_group: Callable[[Any, int], int | None], groups: Iterable[int] = ()
) -> list[str]:
    """The N:M with N < M that every group of every row holds.

    densest_group: of a weight (a tensor, or an array that says which entries are not 0) and M; groups: M to look for
    beside those that hardware and papers use.
    """
    asked = {*_ALWAYS, *groups}
    held = []
    for group in sorted({*asked, *_AT_MOST_HALF}):
        most = group - 1 if group in asked else group // 2
        for part_OI in (weight_OI[:1], weight_OI):  # of most weights the first row tells that they hold none
            keep = densest_group(part_OI, group)
            if keep is None or keep > most:
                break
        else:
            held.append(f"{keep}:{group}")
    return held


def common_patterns(of_each: Sequence[Sequence[str]]) -> list[str]:
    """Per M, the loosest N:M of all weights; none where one holds none. Of M that are not looked for in any weight
    those are left out that a smaller M implies: 8:16, where 4:8 is held."""
    common: dict[int, int] = {}
    for group in groups_of(pattern for held in of_each for pattern in held):
        kept = [int(pattern.split(":")[0]) for held in of_each for pattern in held if pattern.endswith(f":{group}")]
        implied = any(group % size == 0 and keep * group // size <= max(kept) for size, keep in common.items())
        if len(kept) == len(of_each) and (group in _ALWAYS or not implied):
            common[group] = max(kept)
    return [f"{keep}:{group}" for group, keep in common.items()]
