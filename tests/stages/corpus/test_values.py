"""What becomes of a value by its type, in every file kind: nothing vanishes, nothing is misread."""

from __future__ import annotations

import datetime
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from restorelcc.base.errors import BadInput
from restorelcc.base.model_entry import DataFiles
from restorelcc.stages.corpus.account import Account, Rows
from restorelcc.stages.corpus.formats import Example, examples, texts
from restorelcc.stages.corpus.gold import right_choice
from restorelcc.stages.corpus.local import read_file
from restorelcc.stages.corpus.values import is_missing, plain_text, whole_number

DATA = DataFiles(calibration="c", instructions="i", heldout="h")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (" a ", "a"), ("", ""), (True, "yes"), (False, "no"), (np.True_, "yes"), (0, "0"), (-7, "-7"), (1.0, "1.0"),
        (0.1, "0.1"), (np.float32(0.1), "0.1"), (np.float64(0.1), "0.1"), (np.int8(3), "3"), (Decimal("1.50"), "1.50"),
        (None, None), (math.nan, None), (np.float32("nan"), None), (Decimal("NaN"), None),
    ],
)  # fmt: skip
def test_a_value_is_text_by_its_type(value: object, text: str | None) -> None:
    assert plain_text(value, "here") == text
    assert is_missing(value) is (text is None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["a"], "here is a list, where a text is wanted: join its items"),
        (np.array([1]), "here is a list"),
        ({"a": 1}, "here is an object, where a text is wanted: put the text that it holds into a column"),
        (b"a", "here is bytes, where a text is wanted: decode them"),
        (math.inf, "here is an infinite number"),
        (datetime.date(2024, 1, 1), "here is a value of type date"),
    ],
)
def test_what_is_no_text_is_refused(value: object, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        plain_text(value, "here")


def test_numbers_that_stand_for_integers() -> None:
    assert [whole_number(value) for value in (2, 2.0, np.int64(2), Decimal(2), np.float32(2))] == [2] * 5
    assert [whole_number(value) for value in (True, "2", 2.5, math.nan, math.inf, None)] == [None] * 6


def test_boolean_answers_are_yes_and_no_in_every_file_kind(tmp_path: Path) -> None:
    """BoolQ's own shape: no row vanishes, and none is "True"."""
    rows = [{"question": f"is {n} even", "passage": "p", "answer": n % 2 == 0} for n in range(6)]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    for kind in ("jsonl", "json", "parquet"):
        account = Account()
        found = list(examples(read_file(tmp_path / f"b.{kind}", "b"), DATA, account))
        assert [example.response for example in found] == ["yes", "no"] * 3, kind
        assert account.skipped == {}


def test_parquet_values_of_every_type(tmp_path: Path) -> None:
    def read(column: pa.Array) -> tuple[list[str], dict[str, int]]:
        pq.write_table(pa.table({"text": column}), tmp_path / "t.parquet")
        account = Account()
        found = [text for _, text in texts(read_file(tmp_path / "t.parquet", "t"), DATA, account)]
        return found, account.skipped

    assert read(pa.array(["a", None, " "])) == (["a"], {"null text": 1, "empty text": 1})
    assert read(pa.array([0, None, 2])) == (["0", "2"], {"null text": 1})
    assert read(pa.array([0.1, None, math.nan], pa.float32())) == (["0.1"], {"null text": 2})
    assert read(pa.array([0.1, 0.1], pa.float32()).dictionary_encode()) == (["0.1", "0.1"], {})
    assert read(pa.array([False, True])) == (["no", "yes"], {})
    assert read(pa.array(["a", "b", "a"]).dictionary_encode()) == (["a", "b", "a"], {})
    assert read(pa.array(["a"], pa.large_string())) == (["a"], {})
    assert read(pa.array([Decimal("1.50")])) == (["1.50"], {})
    path = tmp_path / "t.parquet"
    for column, kind in (([b"a"], "bytes"), ([["a"]], "a list"), ([{"a": 1}], "an object")):
        with pytest.raises(BadInput, match=f"row 1 of {path}: column 'text' is {kind}, where a text is wanted"):
            read(pa.array(column))


def test_numbers_within_lists_and_objects_stay_as_narrow_as_they_are(tmp_path: Path) -> None:
    numbers = pa.list_(pa.float32())
    kinds = [
        numbers,
        pa.large_list(pa.float16()),
        pa.list_(pa.float32(), 3),
        pa.struct([("text", numbers), ("label", pa.list_(pa.string()))]),
    ]
    for kind in kinds:
        values: Any = [0.1, None, 2.5]
        if kind == pa.large_list(pa.float16()):
            values = [np.float16(0.1), None, np.float16(2.5)]
        if pa.types.is_struct(kind):
            values = {"text": values, "label": ["a", "b", "c"]}
        columns = {"question": ["q", "r"], "choices": pa.array([values, None], kind), "gold": [0, 0]}
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        account = Account()
        (found,) = examples(read_file(tmp_path / "t.parquet", "t"), DATA, account)
        assert (found.response, found.wrong, account.skipped) == ("0.1", ("2.5",), {"null choices": 1}), kind


GOLD: list[tuple[Any, list[str], list[Any], int | None]] = [
    (0, ["a", "b"], [], 0),
    (1.0, ["a", "b"], [], 1),
    (2, ["a", "b"], [], None),
    (-1, ["a", "b"], [], None),
    ("b", ["a", "b"], [], 1),
    ("B", ["a", "b"], [], 1),
    ("1", ["a", "b"], [], 1),
    ("1", ["2", "1", "0"], [], 1),  # a text that is a choice is that choice
    (1, ["1", "2"], [], 1),  # a number is a position
    ("2", ["a", "b"], ["1", "2"], 1),
    (2, ["a", "b"], [1, 2], 1),
    (True, ["no", "yes"], [], 1),
    (False, ["no", "yes"], [], 0),
    (True, ["Yes", "No"], [], 0),
    (False, ["True.", "False."], [], 1),
    (True, ["it does not", "it does"], [], 1),
    (np.True_, ["a", "b"], [], 1),
    ("c", ["a", "b"], [], None),
    ("9" * 5000, ["a", "b"], [], None),
    ("9" * 5000, ["a", "9" * 5000], [], 1),
]


@pytest.mark.parametrize(("gold", "choices", "labels", "position"), GOLD)
def test_gold_by_its_type(gold: object, choices: list[str], labels: list[Any], position: int | None) -> None:
    assert right_choice(gold, choices, labels, "here") == position


def test_true_names_none_of_three_choices() -> None:
    with pytest.raises(BadInput, match="here is true, which names one of two choices, but there are 3"):
        right_choice(True, ["a", "b", "c"], [], "here")


def test_choices_of_other_types_are_texts_by_the_same_rules() -> None:
    def read(**row: object) -> Example:
        (found,) = examples(Rows("f", [(1, {"question": "q"} | row)]), DATA, Account())
        return found

    assert read(choices=[False, True], gold=False).response == "no"
    assert read(choices=[0, 10], gold=0).response == "0"
    assert read(choices=["a", "", None, "b"], gold=3).wrong == ("a",)


def test_numbers_and_nulls_of_a_pair_and_an_instruction() -> None:
    rows = [
        {"instruction": "add", "input": 0, "output": 0},
        {"instruction": "add", "input": None, "output": 0.5},
        {"instruction": None, "input": None, "output": "x"},
        {"instruction": "say", "input": "", "output": None},
        {"instruction": "add", "input": 0, "output": "again"},
    ]
    account = Account()
    found = list(examples(Rows("f", enumerate(rows, 1)), DATA, account))
    assert [(example.question, example.response) for example in found] == [("add\n0", "0"), ("add", "0.5")]
    assert account.record() == {
        "read": 5,
        "used": 0,
        "shortened": 0,
        "skipped": {
            "null instruction": {"count": 1, "first": 3},
            "null output": {"count": 1, "first": 4},
            "duplicate question": {"count": 1, "first": 5},
        },
    }
