"""Tables that `dvc plots` draws; dvc.yaml says how."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from restorelcc.stages.report.results import Results


def write_plots(folder: Path, results: Results) -> None:
    """recovered.csv, a row per restored or recovered model; tasks.csv, a row per model and task."""
    folder.mkdir()
    _write(
        folder / "recovered.csv",
        ["model", "pruning", "what", "head_ratio", "recovered", "low", "high"],
        _recovered(results),
    )
    _write(folder / "tasks.csv", ["model", "pruning", "what", "task", "accuracy"], _tasks(results))


def _recovered(results: Results) -> Iterator[list[Any]]:
    for group in results.groups:
        for row in group.recovering:
            if row["recovered"] is not None:
                low, high = row["ci95"] or (None, None)
                yield [group.model, group.pruning, row["what"], row["head_ratio"], row["recovered"], low, high]


def _tasks(results: Results) -> Iterator[list[Any]]:
    for group in results.groups:
        for row in group.rows:
            for name, task in row["tasks"].items():
                if task["averaged"]:
                    yield [group.model, group.pruning, row["what"], name, task["value"]]


def _write(path: Path, columns: list[str], rows: Iterator[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
