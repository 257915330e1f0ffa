"""Rows longer than the model takes: shortened or dropped where they are made, so that no later stage stops at one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from restorelcc.base.cell import Cell
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import DataFiles, ModelEntry
from restorelcc.base.tables import CONTRAST, EXAMPLES, read_table
from restorelcc.models.checkpoints import save_checkpoint
from restorelcc.models.text import encode_contrasts, encode_pair
from restorelcc.stages.capture import CaptureConfig
from restorelcc.stages.capture.stage import run_dense
from restorelcc.stages.corpus import CorpusConfig
from restorelcc.stages.corpus.account import Account
from restorelcc.stages.corpus.fit import Fitting
from restorelcc.stages.corpus.formats import Example
from restorelcc.stages.corpus.stage import run
from restorelcc.training.pairs import read_pairs
from tests import pico
from tests.models.test_response_mask import CHATML, byte_level
from tests.stages.prune.project import words

TooLong = Literal["shorten", "drop"]
BOTH: tuple[TooLong, ...] = ("shorten", "drop")


def _fitting(too_long: TooLong, max_tokens: int = 16) -> Fitting:
    return Fitting(pico.word_tokenizer(), max_tokens, too_long)


def _words(count: int) -> str:
    return words(count, count)


def test_a_response_is_shortened_only_where_it_leaves_its_question_no_token() -> None:
    question = _words(8)
    for length, expected in ((8, 8), (15, 15), (16, 12), (40, 12)):
        account = Account()
        (found,) = _fitting("shorten").examples([Example("t", question, _words(length), row=7)], account)
        assert len(found.response.split()) == expected, "a quarter of the tokens is left for the question"
        assert _words(length).startswith(found.response)
        assert account.shortened == (length != expected)
        assert encode_pair(pico.word_tokenizer(), question, found.response, 16).question_tokens >= 1
    (found,) = _fitting("shorten").examples([Example("t", _words(2), _words(40))], Account())
    assert len(found.response.split()) == 14, "a short question is left whole"


def test_a_row_is_dropped_where_that_is_asked_for_and_counted() -> None:
    account = Account()
    found = [Example("t", _words(3), _words(length), row=length) for length in (3, 40, 50)]
    assert _fitting("drop").examples(found, account) == found[:1]
    assert account.skipped == {"too long": 2} and account.first == {"too long": 40}


@pytest.mark.parametrize("too_long", BOTH)
def test_a_response_without_a_token_is_left_out(too_long: TooLong) -> None:
    account = Account()
    found = _fitting(too_long).examples([Example("t", "w5", "", row=3)], account)
    assert found == [] and account.skipped == {"no token of its own": 1}


STRICT = "{{ raise_exception('no system message') if messages[0].role == 'system' }}" + CHATML


def test_a_conversation_that_the_chat_template_refuses_is_left_out_and_counted() -> None:
    tokenizer, account = byte_level(bos=False), Account()
    tokenizer.chat_template = STRICT
    said = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"})
    found = [Example("chat", "Hi", "Yo", said[start:], row=5 - start) for start in (0, 1)]
    assert Fitting(tokenizer, 96, "shorten").examples(found, account) == found[1:]
    assert account.skipped == {"refused by the chat template: no system message": 1}
    assert account.first == {"refused by the chat template: no system message": 5}


@pytest.mark.parametrize("too_long", BOTH)
def test_so_are_the_wrong_responses_of_tuples(too_long: TooLong) -> None:
    account, good = Account(), Example("t", _words(8), _words(5), wrong=(_words(6),), row=1)
    long = Example("t", _words(8), _words(5), wrong=(words(40, 1),), row=2)
    found = _fitting(too_long).contrasts([good, long], account)
    assert found[0] == good and account.read == 2
    if too_long == "drop":
        assert len(found) == 1 and account.skipped == {"too long": 1} and account.first == {"too long": 2}
    else:
        assert account.shortened == 1 and len(found[1].wrong[0].split()) == 12
    rows = [{"question": one.question, "positive": one.response, "negative": one.wrong[0]} for one in found]
    encode_contrasts(pico.word_tokenizer(), rows, 16)


def test_a_chat_keeps_the_end_mark_of_its_shortened_answer() -> None:
    tokenizer = byte_level(bos=False)
    tokenizer.chat_template = CHATML
    answer = "The red hat is old. " * 40
    fitting = Fitting(tokenizer, 96, "shorten", chat_template=True)
    (found,) = fitting.examples([Example("chat", "Say", answer.strip())], Account())
    written = fitting.written(found)
    assert written.response == f"{found.response}<|im_end|>" and answer.startswith(found.response)
    assert len(encode_pair(tokenizer, written.question, written.response, 96).ids) <= 96


def _project(root: Path, too_long: TooLong, **changes: Any) -> tuple[Layout, CorpusConfig, ModelEntry]:
    """40 short rows, one whose response fills the context of the model thrice, one whose question does."""
    rows = [{"question": words(5, n), "response": words(3, 100 + n)} for n in range(40)]
    rows += [{"question": words(6, 200), "response": words(100, 201)}]
    rows += [{"question": words(100, 202), "response": words(4, 203)}]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "texts.txt").write_text("\n".join(words(20, n) for n in range(9)))
    model = pico.pico("opt", max_position_embeddings=32)
    layout = Layout(root)
    save_checkpoint(layout.dense(Cell("own")), model, pico.word_tokenizer())
    data = DataFiles(calibration="texts.txt", instructions="pairs.jsonl", heldout="texts.txt")
    entry = ModelEntry(source=str(layout.dense(Cell("own"))), data=data, threads=1, device="cpu")
    return layout, CorpusConfig(valid=4, encoder=None, too_long=too_long, **changes), entry


@pytest.mark.parametrize("too_long", BOTH)
def test_no_later_stage_stops_at_a_row_of_the_corpus(too_long: TooLong, tmp_path: Path) -> None:
    layout, config, entry = _project(tmp_path, too_long)
    cell = Cell("own")
    run(cell, config, entry, layout)
    run_dense(cell, CaptureConfig(), entry, layout)
    folder = layout.corpus(cell)
    from restorelcc.stages.compensate import CompensateConfig

    pairs = read_pairs(folder, layout.dense(cell), CompensateConfig())
    assert pairs.left_out == 0
    assert max(len(pair.ids) for pair in (*pairs.train, *pairs.valid)) <= 32, "the model's context, not max_tokens"
    rows = [row for side in ("train", "valid") for row in read_table(folder / f"{side}.parquet", EXAMPLES)]
    assert len(rows) == 42 - (too_long == "drop")
    assert max(len(row["question"].split()) for row in rows) == 100, "questions are cut later, on the left"
    tuples = read_table(folder / "contrast.parquet", CONTRAST)
    assert max(len(row[side].split()) for row in tuples for side in ("positive", "negative")) <= 26
    sources = json.loads((folder / "sources.json").read_text())
    account = sources["instructions"]["rows"]
    assert account["shortened"] == (too_long == "shorten")
    assert account["skipped"] == ({"too long": {"count": 1, "first": 41}} if too_long == "drop" else {})
    assert sources["tokenizer"]["max_tokens"] == 32


def test_pairs_of_one_task_are_trained_on_and_a_task_that_is_none_is_refused(tmp_path: Path) -> None:
    from restorelcc.stages.compensate import CompensateConfig

    layout, config, entry = _project(tmp_path, "drop")
    rows = [
        {"question": words(5, n), "response": words(3, 100 + n), "task": ("nli", "recall")[n % 2]} for n in range(40)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    cell = Cell("own")
    run(cell, config, entry, layout)
    folder, dense = layout.corpus(cell), layout.dense(cell)
    table = read_table(folder / "train.parquet", EXAMPLES)
    asked = {row["question"]: row["task"] for row in rows}
    assert all(row["task"] == asked[row["question"]] for row in table)
    assert {row["task"] for row in read_table(folder / "contrast.parquet", CONTRAST)} == {"nli", "recall"}
    count = sum(row["task"] == "nli" for row in table)
    assert 0 < count < len(table) == len(read_pairs(folder, dense, CompensateConfig()).train)
    assert len(read_pairs(folder, dense, CompensateConfig(task="nli")).train) == count
    assert len(read_pairs(folder, dense, CompensateConfig(task="nli", examples=5)).train) == 5
    with pytest.raises(BadInput, match="no pair of the task 'rte': known are nli, recall; correct `task`"):
        read_pairs(folder, dense, CompensateConfig(task="rte"))


def test_rows_that_are_dropped_make_room_for_others(tmp_path: Path) -> None:
    layout, config, entry = _project(tmp_path, "drop", train=36, max_tokens=8)
    run(Cell("own"), config, entry, layout)
    assert len(read_table(layout.corpus(Cell("own")) / "train.parquet", EXAMPLES)) == 36
