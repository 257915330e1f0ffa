"""Folders that one process at a time works in; the lock dies with its process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            if folder.is_dir() and os.path.samestat(os.fstat(descriptor), folder.stat()):
                yield True
                return
        finally:
            os.close(descriptor)
        # The process that had the lock has deleted the folder meanwhile: begin again with a new one.
