"""Progress bars: one look for all stages ("capture dense: 12/32 batches"), on stderr, silent when told so."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], title: str, unit: str, total: int | None = None) -> tqdm:
    """Iterate with a bar `title: n/total unit`; RESTORELCC_PROGRESS=0 turns all bars off."""
    return tqdm(
        items,
        desc=title,
        unit=unit,
        total=total,
        dynamic_ncols=True,
        mininterval=0.5,
        disable=os.environ.get("RESTORELCC_PROGRESS") == "0",
        bar_format="{desc}: {n_fmt}/{total_fmt} {unit} |{bar}| {elapsed}<{remaining} {postfix}",
    )
