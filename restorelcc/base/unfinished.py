"""Work that survives being killed: what is finished of it stays in .work/<name>-<mark>/ until all is written.

The mark covers everything the work depends on, so that a rerun finds its own and never another run's. Of texts that a
model writes for its own data, .work/words/models.<model>/ has the batches; there each file's name covers what it is of.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from restorelcc.base.cell import Cell
from restorelcc.base.digest import json_digest
from restorelcc.base.layout import Layout
from restorelcc.base.publish import left_behind, locked

_MARK = "[0-9a-f]{16}"
# Stages that keep such work, by the kind of cell that they work on.
STAGES = {"dense": "capture_dense", "pruned": "capture_pruned", "restored": "compensate", "recovered": "recover"}


class Unfinished(NamedTuple):
    """Work of a stage that ended before all was written."""

    folder: Path
    name: str  # `work_name`; of a model's own words `models.<model>`
    bytes: int


def mark_of(content: dict[str, Any]) -> str:
    """16 hex digits that change with any of the content."""
    return json_digest(content)[:16]


def work_name(stage: str, cell: Cell) -> str:
    """`compensate-tiny-wanda-0.5-0.25`: what the folders of a stage's work on a cell begin with."""
    return f"{stage}-{'-'.join(str(cell).split())}"


@contextmanager
def kept_work(layout: Layout, name: str, mark: str) -> Iterator[Path]:
    """.work/<name>-<mark>, locked against a second process; deleted when the block ends well, kept when it does not.

    Work that other marks left under the same name goes too: what it was made of is no longer there. It stays while a
    process works on it. A folder in which nothing was kept is deleted in any case.
    """
    folder = layout.work / f"{name}-{mark}"
    with locked(folder):
        try:
            yield folder
        except BaseException:
            with suppress(OSError):
                folder.rmdir()
            raise
        shutil.rmtree(folder, ignore_errors=True)
    for other in layout.work.glob(f"{name}-*"):
        if re.fullmatch(_MARK, other.name.removeprefix(f"{name}-")):
            with locked(other, wait=False) as free:
                if free:
                    shutil.rmtree(other, ignore_errors=True)


def unfinished(layout: Layout) -> list[Unfinished]:
    """Work that is kept and that no process has at hand, in the order of its names."""
    ours = re.compile(rf"((?:{'|'.join(STAGES.values())})-[a-z0-9.-]+)-{_MARK}")
    found = [(path, match[1]) for path in left_behind(layout.work, "*-*") if (match := ours.fullmatch(path.name))]
    found += [(path, path.name) for path in left_behind(_words(layout), "models.*")]
    return [Unfinished(path, name, sum(map(_size, path.rglob("*")))) for path, name in found]


def words_folder(layout: Layout, key: str) -> Path:
    """Where the batches of texts lie that a model has written for its own data. key: `models.<model>`."""
    return _words(layout) / key


def _words(layout: Layout) -> Path:
    return layout.work / "words"


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):  # gone meanwhile
        return path.lstat().st_size if path.is_file() else 0
    return 0


def delete_unfinished(work: Unfinished) -> bool:
    """Delete it, unless a process has taken it up meanwhile; says whether it is gone."""
    with locked(work.folder, wait=False) as free:
        if free:
            shutil.rmtree(work.folder, ignore_errors=True)
        return free
