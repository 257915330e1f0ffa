"""Parquet tables, written and read against a schema, and the schema of every table that two rooms share.

Every column has its digest in the file's metadata, and so has the metadata itself: what is read is what was written.
Page checksums alone would leave the footer (metadata, schema, places of pages) unprotected.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from restorelcc.base.digest import json_digest
from restorelcc.base.documents import AGAIN, SEAL, check_seal, check_there
from restorelcc.base.errors import BadInput, first_line
from restorelcc.base.manifest import check_file

_NAME = "table"
TEXTS = pa.schema([("text", pa.string())])


def write_table(
    path: Path,
    rows: list[dict[str, Any]],
    schema: pa.Schema,
    metadata: dict[str, str] | None = None,
    *,
    named: bool = False,
) -> None:
    """Write rows with exactly this schema; the same rows give the same bytes.

    named: the table notes its file's name, and is refused in the place of another one with the same columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=schema)
    columns = {name: _digest_of_values(table.column(name).to_pylist()) for name in schema.names}
    sealed = sealed_metadata(schema, (metadata or {}) | ({_NAME: path.stem} if named else {}), columns)
    pq.write_table(table.replace_schema_metadata(sealed), path, compression="zstd", write_page_checksum=True)


def read_table(path: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    """Rows of a table. Raises BadInput when the file is missing, unreadable, damaged or lacks a column."""
    check_file(path)
    with opened(path) as table:
        for wanted in schema:
            index = table.schema_arrow.get_field_index(wanted.name)
            found = table.schema_arrow.field(index).type if index >= 0 else "missing"
            if found != wanted.type:
                raise BadInput(f"{path} is not the table expected here (the column {wanted.name} is {found}): {AGAIN}")
        metadata = metadata_of(table, path)
        if metadata.get(_NAME, path.stem) != path.stem:
            raise BadInput(f"{path} is the table {metadata[_NAME]}, in the place of another: {AGAIN}")
        content = table.read(columns=schema.names)
        columns = {name: content.column(name).to_pylist() for name in schema.names}
        for name, values in columns.items():
            check_seal(path, metadata.get(column_key(name)), _digest_of_values(values))
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file, whose pages are checked against their checksums; whatever is wrong with it inside the block, a
    BadInput.
    """
    check_there(path)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as table:
            yield table
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadInput(f"{path} is not a readable Parquet file ({first_line(error)}): {AGAIN}") from error


def sealed_metadata(schema: pa.Schema, metadata: dict[str, str], columns: dict[str, str]) -> dict[str, str]:
    """The metadata with the digest of every column, and one of all that is not in a column: metadata and schema."""
    sealed = metadata | {column_key(name): digest for name, digest in columns.items()}
    return sealed | {SEAL: _digest_of_metadata(schema, sealed)}


def column_key(name: str) -> str:
    """The key of the metadata that holds a column's digest."""
    return f"{SEAL}.{name}"


def metadata_of(table: pq.ParquetFile, path: Path) -> dict[str, str]:
    """The metadata that `sealed_metadata` gave, but for their own digest. Raises BadInput unless that fits."""
    raw = table.metadata.metadata or {}
    found = {key.decode(): value.decode() for key, value in raw.items() if key != b"ARROW:schema"}
    check_seal(path, found.pop(SEAL, None), _digest_of_metadata(table.schema_arrow, found))
    return found


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a table, as it was given to `write_table`."""
    with opened(path) as table:
        found = metadata_of(table, path)
    return {key: value for key, value in found.items() if key != _NAME and not key.startswith(f"{SEAL}.")}


def _digest_of_metadata(schema: pa.Schema, metadata: dict[str, str]) -> str:
    # A list's field is called `item` in memory and `element` in the file.
    columns = [[field.name, str(field.type).replace("<item: ", "<element: ")] for field in schema]
    return json_digest({"schema": columns, "metadata": metadata})


def _digest_of_values(values: list[Any]) -> str:
    """SHA-256 of the values as Python has them, so that it depends on nothing of how they lie in a file."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def read_texts(path: Path) -> list[str]:
    """The `text` column."""
    return [row["text"] for row in read_table(path, TEXTS)]


def write_texts(path: Path, texts: list[str], metadata: dict[str, str] | None = None, *, named: bool = False) -> None:
    """One row per text."""
    write_table(path, [{"text": text} for text in texts], TEXTS, metadata, named=named)


SCORES = ("paper", "relational", "causal", "gradient", "random", "mse", "kl", "energy")
HEADS = pa.schema(
    [("layer", pa.int32()), ("head", pa.int32()), ("score", pa.float64()), ("rank", pa.int32())]
    + [(name, pa.float64()) for name in (*SCORES, "log_loss")]
)


MEASURED = "measured"  # in the table's metadata: the fingerprint (base/fingerprint.py)

SAMPLES = pa.schema(
    [
        ("task", pa.string()),
        ("item_id", pa.int64()),
        ("digest", pa.string()),  # of what was asked: the same for every model, or they cannot be compared
        ("gold", pa.int64()),
        ("prediction", pa.int64()),
        ("correct", pa.bool_()),  # null where the metric is no mean over items
        # Of the task's metric; 0 or 1 for an accuracy; null where only all items together have one. For perplexities
        # the log-likelihood, and in `weight` the words or bytes it is of; else the weight is 1.
        ("score", pa.float64()),
        ("weight", pa.float64()),
        ("log_likelihoods", pa.list_(pa.float64())),
    ]
)


TEXT_SCORES = pa.schema(
    [
        ("text_id", pa.int64()),  # its place among the held-out texts; one without a second token is left out
        ("digest", pa.string()),  # of the text: the same for every model, or they cannot be compared
        ("tokens", pa.int64()),  # that were scored: all but the first
        ("log_likelihood", pa.float64()),  # of these, in nats, each given what is before it in its text
    ]
)


CHAT_TEMPLATE = "chat_template"  # in sources.json: whose chat template is in the texts
TOKENIZER = "tokenizer"  # in sources.json: what counted the tokens of rows, and how many were allowed
OWN_WORDS = "own_words"  # in sources.json, of a role that the dense model wrote itself: how much, and which model
CONTRAST = pa.schema(
    [
        ("sample_id", pa.int64()),
        ("task", pa.string()),
        ("question", pa.string()),
        ("positive", pa.string()),
        ("negative", pa.string()),
    ]
)
EXAMPLES = pa.schema([("task", pa.string()), ("question", pa.string()), ("response", pa.string())])
ITEMS = pa.schema(
    [("item_id", pa.int64()), ("question", pa.string()), ("choices", pa.list_(pa.string())), ("gold", pa.int64())]
)
