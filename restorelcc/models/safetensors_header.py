"""The header of a safetensors file, read and written here only: 8 bytes of length, then JSON, then the numbers.

Offsets of tensors count from the end of the header.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

from restorelcc.base.documents import SEAL, parse_json
from restorelcc.base.errors import BadInput

# Bytes of a number of each dtype; tensor_files.py has what torch calls them.
ITEM_BYTES = {
    **dict.fromkeys(("F64", "C64", "U64", "I64"), 8),
    **dict.fromkeys(("F32", "U32", "I32"), 4),
    **dict.fromkeys(("BF16", "F16", "U16", "I16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "U8", "I8", "BOOL"), 1),
}
METADATA = "__metadata__"
PIECE = 1 << 20  # bytes that are read at a time
LONGEST = 100_000_000  # bytes of a header; safetensors' own limit
_LENGTH = struct.Struct("<Q")
_FIELDS = {"dtype", "shape", "data_offsets"}

Header = dict[str, dict[str, Any]]  # tensor to dtype, shape and data_offsets; METADATA to text by key


def encoded(header: Header, *, sort_keys: bool = False, length: int | None = None) -> bytes:
    """The bytes a file begins with, filled up so that the numbers begin at a multiple of 8, or after `length` bytes."""
    text = json.dumps(header, sort_keys=sort_keys, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8 if length is None else length - _LENGTH.size - len(text))
    return _LENGTH.pack(len(text)) + text


def decoded(raw: bytes, numbers: int | None = None) -> Header:
    """What the bytes of a header say, when all of it fits together: every tensor is of a known dtype, as long as its
    shape says, and they lie one after another without a gap up to the end.

    numbers: bytes that follow the header. Raises ValueError, with the reason, for anything else.
    """
    if len(raw) < _LENGTH.size or _LENGTH.unpack(raw[: _LENGTH.size])[0] != len(raw) - _LENGTH.size:
        raise ValueError("the header is not as long as it says")
    if raw[_LENGTH.size : _LENGTH.size + 1] != b"{":
        raise ValueError("the header is not a JSON object")
    try:
        header = parse_json(raw[_LENGTH.size :], "the header")
    except BadInput as error:
        raise ValueError(str(error)) from error
    if b"\\u" in raw and _has_half_characters(header):
        raise ValueError("a text in it holds half of a character")
    metadata = header.get(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{METADATA} is not text by key")
    place = 0
    entries = tensors_of(header)
    for name, entry in entries.items():
        _check_entry(name, entry)
    for name in sorted(entries, key=lambda name: entries[name]["data_offsets"]):
        start, end = entries[name]["data_offsets"]
        if start != place:
            raise ValueError(f"{name} begins at byte {start}, where the tensor before it ends at {place}")
        place = end
    if numbers is not None and place != numbers:
        cut = "cut short" if place > numbers else "too long"
        raise ValueError(f"it is {cut}: the tensors take {place} bytes, and {numbers} follow the header")
    return header


def _has_half_characters(value: Any) -> bool:
    """Whether a text in a document holds half of a character, which JSON can write (\\ud800) and UTF-8 cannot."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _check_entry(name: str, entry: Any) -> None:
    """Raises ValueError unless one tensor's entry is right by itself."""
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise ValueError(f"{name} is not described by {', '.join(sorted(_FIELDS))}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in ITEM_BYTES:
        raise ValueError(f"{name} is of the dtype {entry['dtype']!r}, and known are {', '.join(ITEM_BYTES)}")
    if not _are_counts(shape):
        raise ValueError(f"{name} has the shape {shape!r}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{name} has the offsets {offsets!r}")
    size = math.prod(shape) * ITEM_BYTES[entry["dtype"]]
    if offsets[1] - offsets[0] != size:
        raise ValueError(f"{name} takes {offsets[1] - offsets[0]} bytes, and its shape and dtype say {size}")


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def read_raw(path: Path) -> bytes:
    """The bytes of a file's header; its numbers begin after them. Raises ValueError when there is no header."""
    with path.open("rb") as file:
        start = file.read(_LENGTH.size)
        if len(start) < _LENGTH.size:
            raise ValueError("it is too short to have a header")
        (length,) = _LENGTH.unpack(start)
        if length > path.stat().st_size - _LENGTH.size:
            raise ValueError("the header is longer than the file")
        if length > LONGEST:
            raise ValueError(f"the header has {length} bytes, and {LONGEST} are the most that it may have")
        return start + file.read(length)


def read_header(path: Path) -> tuple[Header, int]:
    """(the header of a file, the byte where its numbers begin), all of it checked. Raises BadInput."""
    try:
        raw = read_raw(path)
        return decoded(raw, path.stat().st_size - len(raw)), len(raw)
    except (ValueError, OSError) as error:
        raise BadInput(f"{path} is not a readable safetensors file ({error}): download or write it again") from error


def tensors_of(header: Header) -> Header:
    """The entries of tensors, in the order of the header, which need not be that in which they lie in the file."""
    return {name: entry for name, entry in header.items() if name != METADATA}


def sealed_digest(path: Path, header: Header, begin: int) -> str:
    """SHA-256 of the header, but for the digest itself, and of the numbers, which begin at a byte of the file."""
    metadata = {key: value for key, value in header.get(METADATA, {}).items() if key != SEAL}
    total = hashlib.sha256(encoded(header | {METADATA: metadata}, sort_keys=True))
    with path.open("rb") as file:
        file.seek(begin)
        while piece := file.read(PIECE):
            total.update(piece)
    return total.hexdigest()
