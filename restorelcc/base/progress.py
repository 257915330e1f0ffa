"""Output of a stage while it works: progress bars ("capture dense: 12/32 batches") and notices, on stderr.

Of several processes that work together, as `accelerate launch` and torchrun start them, the first speaks for all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm.auto import tqdm


def process_count() -> int:
    """How many processes work together; 1 where nothing launched several."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_first_process() -> bool:
    """Whether this is the process that holds locks, prints and writes files for all."""
    return int(os.environ.get("RANK") or 0) == 0


def weights_are_shared_out() -> bool:
    """Whether each process holds a share of the frozen weights (FSDP), as `accelerate launch --use_fsdp` asks for."""
    return process_count() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes")


T = TypeVar("T")


def progress(items: Iterable[T] | None, title: str, unit: str, total: int | None = None, initial: int = 0) -> tqdm:
    """Iterate (or count by hand, items None) with a bar `title: n/total unit`.

    Bars are for a terminal: a file gets none. RESTORELCC_PROGRESS=1 has them everywhere, 0 nowhere.
    """
    asked = os.environ.get("RESTORELCC_PROGRESS")
    shown = sys.stderr.isatty() if asked not in ("0", "1") else asked == "1"
    return tqdm(
        items,
        desc=title,
        unit=unit,
        total=total,
        initial=initial,
        dynamic_ncols=True,
        mininterval=0.5,
        disable=not shown or not is_first_process(),
        bar_format="{desc}: {n_fmt}/{total_fmt} {unit} |{bar}| {elapsed}<{remaining} {postfix}",
    )


def notice(title: str, text: str) -> None:
    """One line on stderr, above any bar: something the user should know though the work goes on."""
    if is_first_process():
        tqdm.write(f"{title}: {text}", file=sys.stderr)
