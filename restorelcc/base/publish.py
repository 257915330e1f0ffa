"""Artifacts appear whole or not at all: written to a scratch place, then renamed; and locks on folders."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import lock_descriptor

from restorelcc.base.layout import Layout


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock on the folder, which dies with the process; yields False when another has it and wait is False."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            if not lock_descriptor(descriptor, blocking=wait):
                yield False
                return
            if folder.is_dir() and os.path.samestat(os.fstat(descriptor), folder.stat()):
                yield True
                return
        finally:
            os.close(descriptor)
        # The process that had the lock has deleted the folder meanwhile: begin again with a new one.


@contextmanager
def published(layout: Layout, *destinations: Path) -> Iterator[tuple[Path, ...]]:
    """Yield one scratch path per destination; when the block ends well, rename each to its destination.

    The block creates a file or a folder at every scratch path. When it raises, nothing under data/ has changed. What a
    killed process has left in its scratch place is deleted by the next one that writes.
    """
    with _scratch_folder(layout.work) as scratch:
        paths = tuple(scratch / f"{number}-{path.name}" for number, path in enumerate(destinations))
        yield paths
        for path, destination in zip(paths, destinations, strict=True):
            _replace(path, destination, scratch)


@contextmanager
def _scratch_folder(work: Path) -> Iterator[Path]:
    """A folder that is locked as long as its process lives, and deleted at the end; so are those that nobody locks."""
    with ExitStack() as held:
        with locked(work):  # nobody finds another one's folder between its making and its locking
            for left in work.glob("write-*"):
                with locked(left, wait=False) as free:
                    if free:
                        shutil.rmtree(left, ignore_errors=True)
            scratch = Path(tempfile.mkdtemp(prefix="write-", dir=work))
            held.enter_context(locked(scratch))
        held.callback(shutil.rmtree, scratch, ignore_errors=True)
        yield scratch


def _replace(path: Path, destination: Path, scratch: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.is_dir() and not destination.is_symlink():
        # A folder cannot be renamed over a folder that has files: the old one steps aside and goes with the scratch.
        destination.replace(scratch / f"old-{destination.name}")
    put(path, destination)


def put(path: Path, destination: Path) -> None:
    """Rename a file or a folder to its place on the same file system, when its content is on the disk: after a power
    cut either the old one is there or the new one, whole.
    """
    if not path.is_symlink():
        for at, _, names in os.walk(path):
            for name in names:
                _sync(Path(at) / name)
            _sync(Path(at))
        if path.is_file():
            _sync(path)
    path.replace(destination)
    _sync(destination.parent)


def _sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk; a file system that cannot say so is fine."""
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
