"""Which files any process opens below some folders, by the kernel's own account (inotify): compiled readers too."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

_OPEN, _CREATE, _MOVED_TO, _IS_FOLDER = 0x20, 0x100, 0x80, 0x40000000
_HEAD = struct.Struct("iIII")
_LIBC = ctypes.CDLL(None, use_errno=True)


class Opened:
    """A context in which every opening of a file below `folders` is noted; folders made meanwhile count too."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._roots = list(folders)
        self._names: dict[int, Path] = {}
        self.files: set[Path] = set()

    def __enter__(self) -> Opened:
        self._descriptor = _LIBC.inotify_init1(os.O_NONBLOCK)
        assert self._descriptor >= 0, "the kernel gives no inotify"
        for root in self._roots:
            self._watch(root)
        return self

    def __exit__(self, *error: object) -> None:
        self.read()
        os.close(self._descriptor)

    def _watch(self, folder: Path) -> None:
        for at, _, _ in os.walk(folder):
            number = _LIBC.inotify_add_watch(self._descriptor, at.encode(), _OPEN | _CREATE | _MOVED_TO)
            if number >= 0:
                self._names[number] = Path(at)

    def read(self) -> set[Path]:
        """What was opened since the last call."""
        found: set[Path] = set()
        while True:
            try:
                content = os.read(self._descriptor, 1 << 20)
            except BlockingIOError:
                break
            place = 0
            while place < len(content):
                number, mask, _, length = _HEAD.unpack_from(content, place)
                name = content[place + _HEAD.size : place + _HEAD.size + length].rstrip(b"\0").decode()
                place += _HEAD.size + length
                assert not mask & 0x4000, "more was opened than the kernel's queue holds"
                path = self._names.get(number, Path()) / name
                if mask & _IS_FOLDER and mask & (_CREATE | _MOVED_TO):
                    self._watch(path)
                elif mask & _OPEN and not mask & _IS_FOLDER and name:
                    found.add(path)
        self.files |= found
        return found
