"""Rows of local data files."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from restorelcc.core.errors import BadInput


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl, .json (a list), .csv, .parquet or .txt file (one text a line). Raises BadInput otherwise."""
    if not path.is_file():
        raise BadInput(f"data file {path} does not exist: correct its path under models.<name>.data")
    rows = _parsed(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadInput(f"data file {path} is no list of rows: every row has to be an object, {{column: value}}")
    return rows


def _parsed(path: Path) -> Any:
    try:
        match path.suffix:
            case ".jsonl":
                return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            case ".json":
                return json.loads(path.read_text(encoding="utf-8"))
            case ".csv":
                with path.open(encoding="utf-8", newline="") as file:
                    return list(csv.DictReader(file))
            case ".parquet":
                return pq.read_table(path).to_pylist()
            case ".txt":
                return [{"text": line} for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (ValueError, OSError) as error:
        raise BadInput(f"data file {path} cannot be read as {path.suffix}: {error}") from error
    raise BadInput(f"data file {path} has an unknown ending: use .jsonl, .json, .csv, .parquet or .txt")


def texts(path: Path, count: int | None, rng: random.Random, column: str = "text") -> list[str]:
    """`count` texts (all when None) of a column, in an order drawn from rng."""
    rows = read_rows(path)
    if any(column not in row for row in rows) or not rows:
        raise BadInput(f"data file {path} needs a column `{column}` in every row, and at least one row")
    found = [str(row[column]).strip() for row in rows]
    found = [text for text in found if text]
    return found if count is None else rng.sample(found, min(count, len(found)))
