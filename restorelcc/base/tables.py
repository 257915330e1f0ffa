"""Parquet tables, written and read against a schema, and the schema of every table that two rooms share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from restorelcc.base.errors import BadInput

TEXTS = pa.schema([("text", pa.string())])


def write_table(
    path: Path, rows: list[dict[str, Any]], schema: pa.Schema, metadata: dict[str, str] | None = None
) -> None:
    """Write rows with exactly this schema; the same rows give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata(metadata))
    pq.write_table(table, path, compression="zstd")


def read_table(path: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    """Rows of a table. Raises BadInput when the file is missing, unreadable or lacks a column."""
    if not path.is_file():
        raise BadInput(f"{path} is missing: run the stage that writes it (dvc repro)")
    try:
        return pq.read_table(path, columns=schema.names).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise BadInput(
            f"{path} is not the Parquet table expected here ({error}): delete it and run dvc repro"
        ) from error


def read_metadata(path: Path) -> dict[str, str]:
    """The schema metadata of a Parquet file, as text."""
    raw = pq.read_schema(path).metadata or {}
    return {key.decode(): value.decode() for key, value in raw.items()}


def read_texts(path: Path) -> list[str]:
    """The `text` column."""
    return [row["text"] for row in read_table(path, TEXTS)]


def write_texts(path: Path, texts: list[str], metadata: dict[str, str] | None = None) -> None:
    """One row per text."""
    write_table(path, [{"text": text} for text in texts], TEXTS, metadata)


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


CHAT_TEMPLATE = "chat_template"  # in sources.json: whose chat template is in the texts
TOKENIZER = "tokenizer"  # in sources.json: what counted the tokens of rows, and how many were allowed
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
