"""Finished parts of a capture, which survive being killed in a folder of `base.unfinished`."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np

_OPEN_AT_ONCE = 128
_PIECE = 1 << 20


def write_part(folder: Path, number: int, values: np.ndarray) -> Path:
    """Write part `number` and return its file; it appears whole or not at all, and its name carries its checksum."""
    values = np.ascontiguousarray(values)
    scratch = folder / "unfinished.npy"
    with scratch.open("wb") as file:
        np.lib.format.write_array(file, values, allow_pickle=False)
    return scratch.replace(folder / f"part-{number:05d}-{zlib.crc32(values.data.cast('B')):08x}.npy")


def finished_part(folder: Path, number: int, shape: tuple[int, ...]) -> Path | None:
    """The file of part `number` if it is there, of this shape and undamaged; a damaged one is deleted."""
    for path in sorted(folder.glob(f"part-{number:05d}-*.npy")):
        if _is_whole(path, shape):
            return path
        path.unlink()
    return None


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    checksum = 0
    with path.open("rb") as file:
        try:
            found, start, _ = _header(file)
        except ValueError:
            return False
        file.seek(start)
        while piece := file.read(_PIECE):
            checksum = zlib.crc32(piece, checksum)
    return found == shape and path.stem.endswith(f"-{checksum:08x}")


def _header(file: BinaryIO) -> tuple[tuple[int, ...], int, np.dtype]:
    """(shape, first byte of the values, dtype) of an .npy file."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, file.tell(), dtype


class PartReader:
    """Single records of parts of shape [layers, rows, record], in any order; no part is ever in memory whole.

    Threads may share it.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._open: OrderedDict[int, tuple[BinaryIO, tuple[int, ...], int]] = OrderedDict()
        self._lock = Lock()

    def __enter__(self) -> PartReader:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._open.popitem()[1][0].close()

    def read(self, part: int, layer: int, row: int, into: np.ndarray) -> None:
        """Fill a float32 vector with one record."""
        with self._lock:
            file, (_, rows, record), start = self._file(part)
            file.seek(start + (layer * rows + row) * record * into.itemsize)
            count = file.readinto(into.data.cast("B"))  # type: ignore[attr-defined]
        if count != into.nbytes:
            raise OSError(f"{self._paths[part]} was cut short while it was read")

    def _file(self, part: int) -> tuple[BinaryIO, tuple[int, ...], int]:
        if part not in self._open:
            file = self._paths[part].open("rb")
            shape, start, _ = _header(file)
            self._open[part] = (file, shape, start)
            if len(self._open) > _OPEN_AT_ONCE:
                self._open.popitem(last=False)[1][0].close()
        self._open.move_to_end(part)
        return self._open[part]
