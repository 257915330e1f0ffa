"""One stage, one process: a second start of the same stage waits, and a stage ends with whoever started it.

After `kill -9` of dvc the stage would go on, and a rerun would write the same files. So the kernel ends a stage whose
parent is gone, and until it has ended its lock makes the next one wait.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from filelock import lock_descriptor

from restorelcc.base.cell import Cell
from restorelcc.base.layout import Layout
from restorelcc.base.messages import say_named
from restorelcc.base.processes import end_as_interrupted, end_with_parent
from restorelcc.base.progress import is_first_process
from restorelcc.base.publish import check_writable


@contextmanager
def stage_running(layout: Layout, stage: str, cell: Cell | None = None) -> Iterator[None]:
    """Hold the stage's lock, and end as `Ctrl-C` does when told to end or when the parent process dies.

    Of several processes that work on the stage together the first holds the lock for all.
    """
    end_as_interrupted()
    end_with_parent()
    check_writable(layout)
    with held_lock(stage_lock(layout, stage, cell)) if is_first_process() else nullcontext():
        yield


def stage_lock(layout: Layout, stage: str, cell: Cell | None = None) -> Path:
    """The lock file of a stage."""
    return layout.work / "locks" / stage_name(stage, cell)


def stage_name(stage: str, cell: Cell | None = None) -> str:
    """The name that DVC gives a stage of a cell: prune@tiny-wanda-0.5."""
    return stage if cell is None else f"{stage}@{str(cell).replace(' ', '-')}"


@contextmanager
def held_lock(path: Path) -> Iterator[None]:
    """An exclusive lock on a file that holds the owner's process number; says so when it has to wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if not lock_descriptor(file.fileno(), blocking=False):
            say_named(f"{path.name} is running as process {lock_owner(path)}: waiting")
            lock_descriptor(file.fileno())
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def lock_owner(path: Path) -> str | None:
    """The process that holds a lock file; None when nobody does. Some file systems lock only what may be written."""
    with path.open("r+") as file:
        if lock_descriptor(file.fileno(), blocking=False):
            return None
        return file.read() or "unknown"
