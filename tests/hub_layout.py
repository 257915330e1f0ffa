"""Local copies of the seven data sets of `paper-7`, laid out as on the hub: configurations as folders, splits as files,
columns as upstream has them. The content is generated, or comes from $RESTORELCC_REAL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]  # query, choices, gold

# Task: (folder of the hub id, configuration, split).
PLACES = {
    "boolq": ("aps/super_glue", "boolq", "validation"),
    "rte": ("nyu-mll/glue", "rte", "validation"),
    "hellaswag": ("Rowan/hellaswag", None, "validation"),
    "winogrande": ("allenai/winogrande", "winogrande_xl", "validation"),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", "test"),
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", "test"),
    "openbookqa": ("allenai/openbookqa", "main", "test"),
}


def _upstream(task: str, number: int, row: Row) -> Row:
    """A row with the columns that the data set has on the hub."""
    query, choices, gold = row["query"], row["choices"], row["gold"]
    labels = [chr(ord("A") + position) for position in range(len(choices))]
    listed = {"text": choices, "label": labels}
    if task == "boolq":
        return {"question": query.rstrip("?"), "passage": row.get("passage", "w5 w6"), "idx": number, "label": gold}
    if task == "rte":
        return {"sentence1": row["premise"], "sentence2": query, "label": gold, "idx": number}
    if task == "hellaswag":
        activity, _, context = query.partition(": ") if ": " in query else ("", "", query)
        ctx_a, _, ctx_b = context.rpartition(" ")
        return {"ind": number, "activity_label": activity, "ctx_a": ctx_a, "ctx_b": ctx_b, "ctx": context} | {
            "endings": choices,
            "label": str(gold),
        }
    if task == "winogrande":
        return {"sentence": query, "option1": choices[0], "option2": choices[1], "answer": str(gold + 1)}
    if task == "openbookqa":
        return {"id": str(number), "question_stem": query, "choices": listed, "answerKey": labels[gold]}
    return {"id": str(number), "question": query, "choices": listed, "answerKey": labels[gold]}


def write_hub(root: Path, rows: dict[str, list[Row]], *, jsonl: tuple[str, ...] = ()) -> None:
    """root/<hub id>/<configuration>/<split>-00000-of-00001.parquet for every task; as .jsonl for those named."""
    for task, (hub_id, configuration, split) in PLACES.items():
        folder = root / hub_id / (configuration or "")
        folder.mkdir(parents=True)
        content = [_upstream(task, number, row) for number, row in enumerate(rows[task])]
        if task in jsonl:
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        else:
            pq.write_table(pa.Table.from_pylist(content), folder / f"{split}-00000-of-00001.parquet")


def generated_rows(items: int) -> dict[str, list[Row]]:
    """Items of words w3 to w62, with as many choices as upstream has."""
    words = _words()
    rows: dict[str, list[Row]] = {}
    for task in PLACES:
        count = 2 if task in ("boolq", "rte", "winogrande") else 4
        rows[task] = []
        for number in range(items):
            query = " ".join(next(words) for _ in range(5))
            query = f"{query} _ {next(words)}" if task == "winogrande" else query
            choices = [next(words) for _ in range(count)]
            rows[task].append({"query": query, "premise": next(words), "choices": choices, "gold": number % count})
    return rows


def _words() -> Iterator[str]:
    number = 0
    while True:
        number = (number * 1103515245 + 12345) % 2**31
        yield f"w{3 + (number >> 8) % 60}"


def real_rows(data: Path, items: int) -> dict[str, list[Row]]:
    """The first items of the real sets, from their evaluation files."""
    rows: dict[str, list[Row]] = {}
    for task in PLACES:
        file = data / task / ("dev.jsonl" if task == "rte" else "test.jsonl")
        content = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:items]]
        if task == "rte":
            content = [
                {"query": row["hypothesis"], "premise": row["premise"], "choices": ["True", "False"]}
                | {"gold": row["label"]}
                for row in content
            ]
        rows[task] = content
    return rows
