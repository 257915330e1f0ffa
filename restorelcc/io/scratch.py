"""Artifacts appear whole or not at all: written to a scratch place, then renamed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from restorelcc.io.layout import Layout


@contextmanager
def published(layout: Layout, *destinations: Path) -> Iterator[tuple[Path, ...]]:
    """Yield one scratch path per destination; when the block ends well, rename each to its destination.

    The block creates a file or a folder at every scratch path. When it raises, nothing under data/ has changed.
    """
    layout.work.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="write-", dir=layout.work))
    try:
        paths = tuple(scratch / f"{number}-{path.name}" for number, path in enumerate(destinations))
        yield paths
        for path, destination in zip(paths, destinations, strict=True):
            _replace(path, destination, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _replace(path: Path, destination: Path, scratch: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.is_dir() and not destination.is_symlink():
        # A folder cannot be renamed over a folder that has files: the old one steps aside and goes with the scratch.
        destination.replace(scratch / f"old-{destination.name}")
    path.replace(destination)
