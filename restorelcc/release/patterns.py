"""N:M patterns of zeros, as records, cards and `inspect` name them: of every M neighbours in a row N at most are not 0.

Letters: O output features, I input features.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from restorelcc.base.documents import read_json
from restorelcc.base.stock_files import RECORD

_ALWAYS = (4, 8)  # M that are looked for in any weight
_AT_MOST_HALF = (2, 16)  # the same, where half of the weights are removed: little of these sizes is held by chance

_PATTERN = re.compile("[0-9]{1,4}:[0-9]{1,4}")


def recorded_groups(folder: Path) -> tuple[int, ...]:
    """The M that a checkpoint was pruned to, by the prune stage's own account of it, or the M that an export's record
    names; none where there is neither."""
    report, record = (_read(folder / name) for name in ("sparsity.json", RECORD))
    named = record.get("sparsity")
    listed = named.get("patterns") if isinstance(named, dict) else None
    patterns = [report.get("pattern"), *(listed if isinstance(listed, list) else ())]
    return groups_of([each for each in patterns if isinstance(each, str) and _PATTERN.fullmatch(each)])


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else None
    return found if isinstance(found, dict) else {}


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
        for part_OI in (weight_OI[:1], weight_OI):  # the first row rules most weights out
            keep = densest_group(part_OI, group)
            if keep is None or keep > most:
                break
        else:
            held.append(f"{keep}:{group}")
    return held


def common_patterns(of_each: Sequence[Sequence[str]]) -> list[str]:
    """Per M, the loosest N:M of all weights; none where one holds none. Beside 4 and 8, patterns are left out where a
    smaller M implies them: 8:16 by 4:8."""
    common: dict[int, int] = {}
    for group in groups_of(pattern for held in of_each for pattern in held):
        kept = [int(pattern.split(":")[0]) for held in of_each for pattern in held if pattern.endswith(f":{group}")]
        implied = any(group % size == 0 and keep * group // size <= max(kept) for size, keep in common.items())
        if len(kept) == len(of_each) and (group in _ALWAYS or not implied):
            common[group] = max(kept)
    return [f"{keep}:{group}" for group, keep in common.items()]
