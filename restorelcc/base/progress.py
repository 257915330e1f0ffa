"""Progress bars: one look for all stages ("capture dense: 12/32 batches"), on stderr, silent when told so."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm.auto import tqdm

from restorelcc.base.processes import is_first_process

T = TypeVar("T")


def progress(items: Iterable[T] | None, title: str, unit: str, total: int | None = None, initial: int = 0) -> tqdm:
    """Iterate (or count by hand, items None) with a bar `title: n/total unit`; RESTORELCC_PROGRESS=0: no bars."""
    return tqdm(
        items,
        desc=title,
        unit=unit,
        total=total,
        initial=initial,
        dynamic_ncols=True,
        mininterval=0.5,
        disable=os.environ.get("RESTORELCC_PROGRESS") == "0" or not is_first_process(),
        bar_format="{desc}: {n_fmt}/{total_fmt} {unit} |{bar}| {elapsed}<{remaining} {postfix}",
    )


def notice(title: str, text: str) -> None:
    """One line on stderr, above any bar: something the user should know though the work goes on."""
    if is_first_process():
        tqdm.write(f"{title}: {text}", file=sys.stderr)
