"""Data of every shape as questions with responses: told by their columns, or by the names that params.yaml maps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from restorelcc.base.errors import BadInput
from restorelcc.base.model_entry import DataFiles
from restorelcc.stages.corpus.account import Account, Rows
from restorelcc.stages.corpus.formats import Example, examples, prompts
from restorelcc.stages.corpus.local import read_file

CHAT = (
    {"role": "user", "content": "Hi?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "So?"},
)
SHAREGPT = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}, {"from": "human", "value": "So?"}]
ALPACA = Example("instructions", "Say it.\nloud", "IT")
PAIR = Example("instructions", "Who?", "Me.")
CHOICE = Example("choice", "Which?", "b", wrong=("a", "c"))
TEXT = Example("text", "One is here.", "Two is there.")
SPOKEN = Example("chat", "Hi?\nYes.\nSo?", "No.", CHAT)
ARC = {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}
ROWS: list[tuple[str, dict[str, Any], Example]] = [
    ("alpaca", {"instruction": "Say it.", "input": "loud", "output": "IT"}, ALPACA),
    ("alpaca", {"instruction": "Say it.", "output": "IT"}, Example("instructions", "Say it.", "IT")),
    ("pairs", {"question": " Who? ", "response": "Me."}, PAIR),
    ("pairs", {"prompt": "Who?", "completion": "Me."}, PAIR),
    ("choice", {"question": "Which?", "choices": ["a", "b", "c"], "gold": 1}, CHOICE),
    ("choice", {"question": "Which?", "choices": ["a", "b", "c"], "answer": "B"}, CHOICE),
    ("choice", {"question": "Which?", "choices": ["a", "b", "c"], "label": "b"}, CHOICE),
    ("choice", {"query": "Which?", "choices": ARC, "answerKey": "2"}, CHOICE),
    ("text", {"text": "One is here. Two is there."}, TEXT),
    ("chat", {"messages": [*CHAT, {"role": "assistant", "content": "No."}]}, SPOKEN),
    ("chat", {"conversations": [*SHAREGPT, {"from": "gpt", "value": "No."}]}, SPOKEN),
]  # fmt: skip


def _data(path: Path, **options: Any) -> DataFiles:
    return DataFiles(calibration="c", instructions=str(path), heldout="h", **options)


def _read(path: Path, **options: Any) -> list[Example]:
    return list(examples(read_file(path, "f"), _data(path, **options), Account()))


def _written(folder: Path, kind: str, row: dict[str, Any]) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps(row) + "\n")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(("name", "row", "expected"), ROWS)
def test_the_columns_tell_the_format(
    kind: str, name: str, row: dict[str, Any], expected: Example, tmp_path: Path
) -> None:
    path = _written(tmp_path, kind, row)
    for given in ("auto", name):
        assert _read(path, format=given) == [expected]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("columns", "row", "expected"),
    [
        ({"question": "ask", "response": "say"}, {"ask": "Who?", "say": "Me.", "other": 1}, PAIR),
        ({"instruction": "do", "input": "on", "output": "is"}, {"do": "Say it.", "on": "loud", "is": "IT"}, ALPACA),
        ({"messages": "dialogue"}, {"dialogue": [*CHAT, {"role": "assistant", "content": "No."}]}, SPOKEN),
        ({"question": "q", "choices": "c", "gold": "g"}, {"q": "Which?", "c": ["a", "b", "c"], "g": "b"}, CHOICE),
        ({"text": "body"}, {"body": "One is here. Two is there."}, TEXT),
        # A name of one's own goes before the usual ones.
        ({"question": "ask", "response": "say"}, {"ask": "Who?", "say": "Me.", "question": "x", "response": "y"}, PAIR),
    ],
)  # fmt: skip
def test_own_names_of_columns_are_mapped(
    kind: str, columns: dict[str, str], row: dict[str, Any], expected: Example, tmp_path: Path
) -> None:
    path = _written(tmp_path, kind, row)
    assert _read(path, columns=columns) == [expected]


@pytest.mark.parametrize(
    ("columns", "more", "task"),
    [
        ({}, {"task": " rte "}, "rte"),
        ({"task": "kind"}, {"kind": "rte", "task": "x"}, "rte"),
        ({"task": "kind"}, {"kind": 3}, "3"),
        ({"task": "kind"}, {"kind": None}, "instructions"),
        ({}, {"task": None}, "instructions"),
        ({}, {"task": ["a", "b"]}, "instructions"),  # nobody said that it is the name of a task
    ],
)
def test_a_column_with_the_task_names_it(
    columns: dict[str, str], more: dict[str, Any], task: str, tmp_path: Path
) -> None:
    path = _written(tmp_path, "jsonl", {"question": "Who?", "response": "Me."} | more)
    assert _read(path, columns=columns) == [replace(PAIR, task=task)]
    asked = prompts(read_file(path, "f"), _data(path, columns=columns), Account())
    assert [example.task for example in asked] == [task]


def test_a_mapped_task_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = _written(tmp_path, "jsonl", {"question": "Who?", "response": "Me."})
    with pytest.raises(BadInput, match="without the column `kind`"):
        _read(path, columns={"task": "kind"})
    assert list(prompts(read_file(path, "f"), _data(path, columns={"task": "kind"}), Account()))


def test_a_template_of_ones_own_makes_the_question(tmp_path: Path) -> None:
    path = _written(tmp_path, "jsonl", ROWS[0][1])
    template = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
    (found,) = _read(path, template=template)
    assert found.question == "### Instruction:\nSay it.\n\n### Input:\nloud\n\n### Response:"


def _labelled(label: Any, gold: str) -> dict[str, Any]:
    return {"question": "q", "choices": {"text": ["a", "b"], "label": label}, "gold": gold}


def test_labels_that_are_null_are_none() -> None:
    (found,) = examples(Rows("file", [(1, _labelled(None, "B"))]), _data(Path("f")), Account())
    assert (found.response, found.wrong) == ("b", ("a",))


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"words": "x"}, {}, r"file has the columns 'words', of which no format is known: it needs .*columns"),
        ({"ask": "x"}, {"columns": {"question": "ask"}, "format": "pairs"}, "row 1 of file .* the column `response`"),
        ({"messages": "no list"}, {}, r"whose messages are not a list of \{role, content\}"),
        ({"messages": [{"role": "user"}]}, {}, "which lacks role or content"),
        ({"question": "q", "choices": ["a"], "gold": 0}, {}, "no list of at least two texts"),
        ({"question": "q", "choices": ["a", "b"], "gold": 7}, {}, "whose gold 7 names none of its 2 choices"),
        (_labelled(["A", "B", "C"], "C"), {}, "row 1 of file is a row with 3 labels for its 2 choices: correct"),
        (_labelled(["A"], "A"), {}, "row 1 of file is a row with 1 labels for its 2 choices"),
        (_labelled(1, "A"), {}, "row 1 of file is a row whose labels of choices are 1, no list with one label"),
        (_labelled(True, "A"), {}, "whose labels of choices are True, no list"),
        (_labelled("AB", "A"), {}, "whose labels of choices are 'AB', no list"),
        (_labelled({"x": 1}, "x"), {}, r"whose labels of choices are \{'x': 1\}, no list"),
        (_labelled([], "A"), {}, r"whose labels of choices are \[\], no list"),
        (_labelled(None, "9" * 5000), {}, "row 1 of file is a row whose gold '9{79}[.]{3} names none of its"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_are_one_sentence(row: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        list(examples(Rows("file", [(1, row)]), _data(Path("f"), **options), Account()))
    assert "\n" not in str(caught.value)
