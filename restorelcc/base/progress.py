"""Output of a stage while it works: progress bars ("capture dense: 12/32 batches") and notices, on stderr.

Of several processes that work together, as `accelerate launch` and torchrun start them, the first speaks for all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

from tqdm.auto import tqdm

from restorelcc.base.messages import chosen, line


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
_LOOK: dict[str, Any] = {
    "dynamic_ncols": True,
    "mininterval": 0.5,
    "bar_format": "{desc}: {n_fmt}/{total_fmt} {unit} |{bar}| {elapsed}<{remaining} {postfix}",
}


def bars_are_shown() -> bool:
    """Whether this process draws bars: on a terminal, unless `-q` or `--log-json` is given. RESTORELCC_PROGRESS=1 draws
    them in any case, 0 in none."""
    asked = os.environ.get("RESTORELCC_PROGRESS")
    wanted = sys.stderr.isatty() and not chosen("quiet") and not chosen("json")
    return is_first_process() and (wanted if asked not in ("0", "1") else asked == "1")


def progress(
    items: Iterable[T] | None,
    title: str,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    *,
    quiet: bool = False,
) -> tqdm:
    """Iterate (or count by hand, items None) with a bar `title: n/total unit`.

    Bars are for a terminal: a file gets none (`bars_are_shown`). quiet: no bar in any case.
    """
    return tqdm(
        items,
        desc=title,
        unit=unit,
        total=total,
        initial=initial,
        disable=quiet or not bars_are_shown(),
        **_LOOK,
    )


@contextmanager
def bars_named(stage: str, *modules: ModuleType) -> Iterator[None]:
    """Inside, the bars of a library (modules that hold the name `tqdm`) begin with the name of the stage, look like
    our own, and are as silent as those where there is no terminal."""

    def bar(*args: Any, desc: str | None = None, disable: bool | None = False, **how: Any) -> tqdm:
        title = f"{stage}: {desc[:1].lower()}{desc[1:]}" if desc else stage
        return tqdm(*args, desc=title, disable=bool(disable) or not bars_are_shown(), **_LOOK | how)

    before = [vars(module)["tqdm"] for module in modules]
    try:
        for module in modules:
            setattr(module, "tqdm", bar)  # noqa: B010
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            setattr(module, "tqdm", own)  # noqa: B010


def notice(title: str, text: str) -> None:
    """One line on stderr, above any bar: something the user should know though the work goes on."""
    if is_first_process() and not chosen("quiet"):
        told = line(text, "info", stage=title) if chosen("json") else f"{title}: {text}"
        tqdm.write(told, file=sys.stderr)
