"""Corpus of a user's own model, from local files."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from restorelcc.core.errors import BadInput
from restorelcc.core.model_entry import DataFiles


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl, .json (a list), .csv, .parquet or .txt file (one text a line). Raises BadInput otherwise."""
    if not path.is_file():
        raise BadInput(f"data file {path} does not exist: correct its path under models.<name>.data")
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


def texts(path: Path, count: int | None, rng: random.Random) -> list[str]:
    """`count` texts (all when None) in an order drawn from rng; the column is `text`."""
    rows = read_rows(path)
    if any("text" not in row for row in rows) or not rows:
        raise BadInput(f"data file {path} needs a column `text` in every row, and at least one row")
    found = [str(row["text"]).strip() for row in rows]
    found = [text for text in found if text]
    return found if count is None else rng.sample(found, min(count, len(found)))


def pairs(data: DataFiles, count: int, rng: random.Random) -> list[dict[str, str]]:
    """Distinct question/response pairs from instruction data (Alpaca's columns, or `question` and `response`)."""
    path = Path(data.instructions)
    found: dict[str, str] = {}
    for row in read_rows(path):
        if "question" in row and "response" in row:
            question, response = str(row["question"]), str(row["response"])
        elif "instruction" in row and "output" in row:
            question = data.template.format(instruction=row["instruction"], input=row.get("input") or "")
            response = str(row["output"])
        else:
            raise BadInput(
                f"data file {path} needs the columns `instruction` and `output`, or `question` and `response`"
            )
        if question.strip() and response.strip():
            found.setdefault(question.strip(), response.strip())
    chosen = rng.sample(list(found.items()), min(count, len(found)))
    return [{"task": "instructions", "question": question, "response": response} for question, response in chosen]
