"""The header of a safetensors file, read and written here only: 8 bytes of length, then JSON, then the numbers.

Offsets of tensors count from the end of the header.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
METADATA = "__metadata__"
_LENGTH = struct.Struct("<Q")

Header = dict[str, dict[str, Any]]  # tensor to dtype, shape and data_offsets; METADATA to text by key


def encoded(header: Header, *, sort_keys: bool = False) -> bytes:
    """The bytes a file begins with, filled up so that the numbers begin at a multiple of 8."""
    text = json.dumps(header, sort_keys=sort_keys, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return _LENGTH.pack(len(text)) + text


def decoded(raw: bytes) -> Header:
    """What the bytes of a header say. Raises ValueError when they are none."""
    header = json.loads(raw[_LENGTH.size :])
    if not isinstance(header, dict):
        raise ValueError("the header names no tensors")
    return header


def read_raw(path: Path) -> bytes:
    """The bytes of a file's header; its numbers begin after them. Raises ValueError when there is no header."""
    with path.open("rb") as file:
        start = file.read(_LENGTH.size)
        if len(start) < _LENGTH.size:
            raise ValueError("it is too short to have a header")
        (length,) = _LENGTH.unpack(start)
        if length > path.stat().st_size:
            raise ValueError("the header is longer than the file")
        return start + file.read(length)


def tensors_of(header: Header) -> Header:
    """The entries of tensors, in the order of the header, which need not be that in which they lie in the file."""
    return {name: entry for name, entry in header.items() if name != METADATA}
