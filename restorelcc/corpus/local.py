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


def pairs(data: DataFiles, count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Distinct question/response pairs from instruction data: Alpaca's columns, or `question` and `response`, or
    `question`, `choices` and `gold` (the number of the right choice), whose choices are kept."""
    path = Path(data.instructions)
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(read_rows(path)):
        choices = None
        if "question" in row and "choices" in row and "gold" in row:
            question, choices = str(row["question"]), _choices(row, f"data file {path}, row {number + 1}")
            response = choices[int(row["gold"])]
        elif "question" in row and "response" in row:
            question, response = str(row["question"]), str(row["response"])
        elif "instruction" in row and "output" in row:
            question = data.template.format(instruction=row["instruction"], input=row.get("input") or "")
            response = str(row["output"])
        else:
            raise BadInput(
                f"data file {path} needs the columns `instruction` and `output`, or `question` and `response`, or "
                "`question`, `choices` and `gold`"
            )
        question, response = question.strip(), response.strip()
        if question and response:
            found.setdefault(question, {"question": question, "response": response, "choices": choices})
    chosen = rng.sample(list(found.values()), min(count, len(found)))
    return [{"task": "instructions", **example} for example in chosen]


def _choices(row: dict[str, Any], where: str) -> list[str]:
    choices, gold = row["choices"], row["gold"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(str(choice).strip() for choice in choices):
        raise BadInput(f"{where}: `choices` must be a list of at least two texts, it is {choices!r}")
    if not str(gold).isdigit() or not int(gold) < len(choices):
        raise BadInput(f"{where}: `gold` is {gold!r}, it must be the number of a choice, counted from 0")
    return [str(choice).strip() for choice in choices]
