"""Rows of local data files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from restorelcc.base.digest import file_digest
from restorelcc.base.errors import BadInput, first_line
from restorelcc.stages.corpus.account import Row, Rows

_LARGEST_FIELD = 2**31 - 1  # characters of one field of a .csv file, of which Python takes 131,072 by itself
_NARROW = {pa.float32(): np.float32, pa.float16(): np.float16}
Numbered = Iterator[tuple[int, Row]]


def read_file(path: Path, source: str) -> Rows:
    """Rows of a .jsonl, .json (a list), .csv, .parquet or .txt file (one text a line), which `source` names.

    Raises BadInput for a file that is not there or of another kind; reading the rows raises it for what is in them.
    """
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise BadInput(f"data file {path} {what}: correct its path under models.<name>.data")
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise BadInput(f"data file {path} has an unknown ending: use {', '.join(_READERS)}")
    unit = "line" if path.suffix in (".jsonl", ".txt") else "row"
    return Rows(str(path), reader(path), unit, {"source": source, "sha256": file_digest(path)})


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, parted by line feeds alone: a text may hold the other characters that end a line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, line, error.start) from error
            yield number, text.removeprefix("\ufeff") if number == 1 else text


def _not_utf8(path: Path, number: int, line: bytes, at: int) -> BadInput:
    found = f"byte 0x{line[at]:02x} at position {at + 1}"
    return BadInput(f"line {number} of {path} cannot be read as UTF-8 ({found}): save the file in that encoding")


def _jsonl(path: Path) -> Numbered:
    for number, line in _lines(path):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BadInput(f"line {number} of {path} cannot be read as JSON ({error}): correct the line") from error
            yield number, _object(row, path, f"line {number}")


def _json(path: Path) -> Numbered:
    content = path.read_bytes()
    try:
        rows = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        # The error counts without the mark that a file may begin with.
        at = error.start + len(content) - len(content.removeprefix(b"\xef\xbb\xbf"))
        before = content[:at].split(b"\n")
        raise _not_utf8(path, len(before), content[at - len(before[-1]) :], len(before[-1])) from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"data file {path} cannot be read as JSON ({error}): correct it") from error
    if not isinstance(rows, list):
        raise BadInput(
            f"data file {path} is no list of rows: write [{{column: value}}, ...], or one row a line as .jsonl"
        )
    for number, row in enumerate(rows, 1):
        yield number, _object(row, path, f"row {number}")


def _object(row: Any, path: Path, which: str) -> Row:
    if not isinstance(row, dict):
        raise BadInput(
            f"data file {path} is no list of rows: {which} holds {_json_kind(row)}, but every row has to be an object, "
            "{column: value}"
        )
    return row


def _json_kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"the value {json.dumps(value, ensure_ascii=False)[:40]}"


def _csv(path: Path) -> Numbered:
    csv.field_size_limit(_LARGEST_FIELD)
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise BadInput(f"line {reader.line_num} of {path} cannot be read as CSV ({error}): correct it") from error
        if fields is None:
            return
        if header is None:
            if not any(field.strip() for field in fields):
                raise BadInput(f"line 1 of {path} is empty: the first line of a .csv file has to name its columns")
            header = _distinct(fields, path)
        elif fields:
            number += 1
            if len(fields) != len(header):
                raise BadInput(
                    f"row {number} of {path} (line {reader.line_num}) has {len(fields)} fields, but the header names "
                    f"{len(header)}: quote what holds commas"
                )
            yield number, dict(zip(header, fields, strict=True))


def _parquet(path: Path) -> Numbered:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            _distinct(file.schema_arrow.names, path)
            for batch in file.iter_batches():
                for row in _columns_as_they_are(batch):
                    number += 1
                    yield number, row
    except (ValueError, OSError, OverflowError, pa.ArrowException) as error:
        first = first_line(error)
        raise BadInput(f"data file {path} cannot be read as Parquet ({first}): write it anew") from error


def _columns_as_they_are(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows as Python has them; numbers of less than 64 bits stay as narrow as they are, so that 0.1 is written 0.1."""
    rows = batch.to_pylist()
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if _holds_narrow(column.type):
            for row in rows:
                row[name] = _narrowed(row[name], column.type)
    return rows


def _parts(kind: pa.DataType) -> list[pa.DataType]:
    """Types of what a value of a type holds: of a list's items, an object's fields, a dictionary's words."""
    if pa.types.is_dictionary(kind):
        return [kind.value_type]
    return [kind.field(number).type for number in range(kind.num_fields)]


def _holds_narrow(kind: pa.DataType) -> bool:
    return kind in _NARROW or any(map(_holds_narrow, _parts(kind)))


def _narrowed(value: Any, kind: pa.DataType) -> Any:
    """A value of a type with its numbers as narrow as the type has them, those within lists and objects too."""
    if value is None:
        return None
    if kind in _NARROW:
        return _NARROW[kind](value)
    if pa.types.is_dictionary(kind):
        return _narrowed(value, kind.value_type)
    if isinstance(value, dict):
        return {name: _narrowed(each, kind.field(name).type) for name, each in value.items()}
    if isinstance(value, list) and kind.num_fields == 1 and not pa.types.is_map(kind):
        return [_narrowed(each, kind.field(0).type) for each in value]
    return value


def _distinct(names: list[str], path: Path) -> list[str]:
    if twice := [name for position, name in enumerate(names) if name in names[:position]]:
        raise BadInput(f"data file {path} has two columns {twice[0]!r}: rename one of them")
    return names


def _txt(path: Path) -> Numbered:
    return ((number, {"text": line.rstrip("\r\n")}) for number, line in _lines(path) if line.strip())


_READERS: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".txt": _txt,
}
