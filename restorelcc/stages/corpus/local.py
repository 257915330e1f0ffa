"""Rows of local data files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from restorelcc.base.data_bytes import lines, opened
from restorelcc.base.data_files import data_files, kind_of
from restorelcc.base.digest import file_digest, together
from restorelcc.base.documents import unique_keys
from restorelcc.base.errors import BadInput, first_line
from restorelcc.stages.corpus.account import Part, Row, Rows

_LARGEST_FIELD = 2**31 - 1  # characters of one field of a .csv file, of which Python takes 131,072 by itself
_NARROW = {pa.float32(): np.float32, pa.float16(): np.float16}
Numbered = Iterator[tuple[int, Row]]


def read_file(path: Path, source: str, key: str = "models.<name>.data") -> Rows:
    """Rows of a file, or of all files that a folder or a pattern stands for, which `source` names under `key`.

    Raises BadInput for a file that is not there or of another kind; reading the rows raises it for what is in them.
    """
    files = data_files(key, path)
    digests = [file_digest(file) for file in files]
    if len(files) == 1:
        unit, numbered = _rows_of(files[0])
        return Rows(str(files[0]), numbered, unit, {"source": source, "sha256": digests[0]})
    parts: list[Part] = []
    origin = {"source": source, "sha256": together(digests), "files": len(files)}
    return Rows(str(path), _one_after_another(files, parts), origin=origin, parts=parts)


def first_rows(path: Path, key: str, count: int) -> Iterator[Rows]:
    """The first rows of each file that a source names, without a digest of anything."""
    for file in data_files(key, path):
        unit, numbered = _rows_of(file)
        yield Rows(str(file), islice(numbered, count), unit)


def _one_after_another(files: list[Path], parts: list[Part]) -> Numbered:
    """The rows of several files, numbered on from one to the next. `parts` is filled with where each file begins."""
    before = 0
    for file in files:
        unit, numbered = _rows_of(file)
        parts.append(Part(before, str(file), unit))
        number = 0
        for number, row in numbered:
            yield before + number, row
        before += number


def _rows_of(file: Path) -> tuple[str, Numbered]:
    """The rows of one file, and what their numbers count."""
    kind = kind_of(file)
    if kind == "parquet":
        return "row", _parquet(file)
    if kind == "json":
        return ("line", _json_lines(file)) if _is_json_lines(file) else ("row", _json_list(file))
    return "line", _csv(file) if kind == "csv" else _txt(file)


def _is_json_lines(path: Path) -> bool:
    """Whether a file of JSON holds one object a line, whatever its name: .json and .jsonl are used for both."""
    filled = (line for _, line in lines(path, "json") if line.strip())
    first, second = next(filled, "").lstrip(), next(filled, "").lstrip()
    if not first:  # an empty shard: no row either way, and no list
        return True
    if not first.startswith("{") or (not second and path.name.lower().split(".")[-1] == "json"):
        return not first.startswith(("[", "{"))
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return not second or second.startswith("{")
    return True


def _json_lines(path: Path) -> Numbered:
    for number, line in lines(path, "json"):
        if line.strip():
            yield number, _object(_parsed(line.rstrip(), path, f"line {number} of {path}"), path, f"line {number}")


def _json_list(path: Path) -> Numbered:
    rows = _parsed("".join(line for _, line in lines(path, "json")), path, None)
    if not isinstance(rows, list):
        raise BadInput(
            f"data file {path} is no list of rows: {_where_rows_are(rows)}; write [{{column: value}}, ...], or one row "
            "a line as .jsonl"
        )
    for number, row in enumerate(rows, 1):
        yield number, _object(row, path, f"row {number}")


def _parsed(text: str, path: Path, where: str | None) -> Any:
    """The JSON value of a text. where: which line it is; None: it is the whole file."""
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        line = f"line {error.lineno} of {path}" if isinstance(error, json.JSONDecodeError) else f"data file {path}"
        why = "it is nested too deeply" if isinstance(error, RecursionError) else first_line(error)
        if isinstance(error, json.JSONDecodeError):  # its own line counts from the start of what was parsed
            why = f"{error.msg} at character {error.colno}"
        mend = "correct the line" if where else "correct it"
        if where is None and "Extra data" in str(error):
            mend = "write one list of rows, or one row a line (jq -c does it)"
        raise BadInput(f"{where or line} cannot be read as JSON ({why}): {mend}") from error


def _where_rows_are(content: Any) -> str:
    """What an object in place of a list of rows looks like."""
    if not isinstance(content, dict):
        return f"it holds {_json_kind(content)}"
    for name, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return f"it is one object, and the rows seem to be the list under {name[:40]!r}"
    if content and all(isinstance(value, list | dict) for value in content.values()):
        return "it is one object with a list for every column (pandas writes rows with orient='records')"
    return "it is one object"


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
    """Rows by the number of the line that they begin in; blank lines, and empty fields at the end, do not count."""
    csv.field_size_limit(_LARGEST_FIELD)
    numbered = lines(path, "csv")
    first = next(numbered, (1, ""))
    separator = _separator(first[1], path)
    if first[1].strip().lower().startswith("sep="):  # what Excel writes in front of the header
        separator, first = first[1].strip()[4:5] or ",", next(numbered, (2, ""))
    # A separator by itself in front of a quoted field is followed by a blank in some files: "a", "b, c".
    reader = csv.reader(
        (line for _, line in chain([first], numbered)), strict=True, delimiter=separator, skipinitialspace=True
    )
    header: list[str] | None = None
    skipped = first[0] - 1
    while True:
        line = reader.line_num + 1 + skipped
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise BadInput(f"line {line} of {path} cannot be read as CSV ({error}): correct it") from error
        if fields is None:
            return
        if header is None:
            header = _distinct(_without_empty_end([field.strip() for field in fields]), path)
            if not header:
                raise BadInput(f"line {line} of {path} is empty: the first line of a .csv file has to name its columns")
        elif fields:
            fields = fields[: len(header)] + _without_empty_end(fields[len(header) :])
            if len(fields) != len(header):
                raise BadInput(
                    f"line {line} of {path} has {len(fields)} fields, but the header names {len(header)}: quote what "
                    f"holds {_SEPARATORS.get(separator, repr(separator))}"
                )
            yield line, dict(zip(header, fields, strict=True))


_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def _separator(header: str, path: Path) -> str:
    """A tab in .tsv files; elsewhere what parts the header: a comma, or else a semicolon or a tab, as Excel writes."""
    if ".tsv" in path.name.lower():
        return "\t"
    return next((mark for mark in _SEPARATORS if mark in header), ",")


def _without_empty_end(fields: list[str]) -> list[str]:
    """Fields without the empty ones at the end, which a spreadsheet writes for columns that were once used."""
    last = max((number for number, field in enumerate(fields, 1) if field.strip()), default=0)
    return fields[:last]


def _parquet(path: Path) -> Numbered:
    number = 0
    with opened(path, "parquet"):
        pass  # refuses what is no Parquet file at all by what it is
    try:
        with pq.ParquetFile(path) as file:
            _distinct(file.schema_arrow.names, path)
            for batch in file.iter_batches():
                for row in _columns_as_they_are(batch):
                    number += 1
                    yield number, row
    except (ValueError, OSError, OverflowError, pa.ArrowException) as error:
        first = first_line(error)
        raise BadInput(
            f"data file {path} cannot be read as Parquet ({first}): fetch it again, or write it again"
        ) from error


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
    return ((number, {"text": line.rstrip("\r\n")}) for number, line in lines(path, "txt") if line.strip())
