"""A user's own data: every accepted file, contrast tuples, and what is refused."""

import json
from pathlib import Path

import pytest

from restorelcc.base.cell import Cell
from restorelcc.base.digest import file_digest
from restorelcc.base.documents import read_document
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import DataFiles, ModelEntry
from restorelcc.base.tables import CONTRAST, EXAMPLES, TEXTS, read_table, read_texts, write_table
from restorelcc.stages.corpus import CorpusConfig
from restorelcc.stages.corpus.contrast import most_similar_other
from restorelcc.stages.corpus.local import read_file
from restorelcc.stages.corpus.roles import Roles
from restorelcc.stages.corpus.sources import calibration_texts, pairs
from restorelcc.stages.corpus.stage import run
from tests.stages.corpus.sources import text_model


def test_all_file_kinds_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"text": "one two"}, {"text": "three"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text("text\none two\nthree\n")
    (tmp_path / "a.txt").write_text("one two\n\nthree\n")
    write_table(tmp_path / "a.parquet", rows, TEXTS)
    for kind in ("jsonl", "json", "csv", "txt", "parquet"):
        assert [row for _, row in read_file(tmp_path / f"a.{kind}", "a").numbered] == rows, kind


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", None, "does not exist"),
        ("a.jsonl", "{broken", "cannot be read"),
        ("a.docx", "x", "unknown ending"),
        ("a.jsonl", '{"words": 1}', "column `text`"),
        ("a.jsonl", "", "at least one row"),
        ("a.jsonl", '["one", "two"]', "no list of rows"),
        ("a.json", '{"text": "one"}', "no list of rows"),
        ("a.json", '["one"]', "no list of rows"),
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=message):
        calibration_texts(DataFiles(calibration=name, instructions="i", heldout="h"), CorpusConfig(), tmp_path)


def _instructions(path: Path, count: int = 20) -> DataFiles:
    rows = [{"instruction": f"say {n}", "input": "", "output": f"the number is {n}"} for n in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return DataFiles(calibration=str(path), instructions=str(path), heldout=str(path))


def test_alpaca_columns_become_distinct_pairs(tmp_path: Path) -> None:
    data = _instructions(tmp_path / "i.jsonl")
    found = pairs(data, CorpusConfig(train=80, valid=20), tmp_path, lambda batch, _: batch)
    assert len(found.items) == 20
    assert found.origin == {
        "source": str(tmp_path / "i.jsonl"),
        "sha256": file_digest(tmp_path / "i.jsonl"),
        "rows": {"read": 20, "used": 20, "shortened": 0, "skipped": {}},
    }
    assert {(example.question, example.response) for example in found.items} == {
        (f"say {n}", f"the number is {n}") for n in range(20)
    }
    (tmp_path / "i.jsonl").write_text('{"prompt": "x"}')
    with pytest.raises(BadInput, match="`instruction` and `output`"):
        pairs(data, CorpusConfig(train=4, valid=1), tmp_path, lambda batch, _: batch)


def test_the_contrast_is_the_most_similar_other_response_never_a_duplicate() -> None:
    responses = ["the red hat is old", "a dog runs", "The red  hat is old", "the red hat is new", "a dog sleeps"]
    nearest = most_similar_other(responses)
    assert nearest == [3, 4, 3, 0, 1]
    with pytest.raises(BadInput, match="all the same text"):
        most_similar_other(["same", "Same "])


def test_a_corpus_of_ones_own_is_written_whole_and_split(tmp_path: Path) -> None:
    _instructions(tmp_path / "i.jsonl")
    (tmp_path / "t.txt").write_text("\n".join(f"text number {n}" for n in range(30)))
    data = DataFiles(calibration="t.txt", instructions="i.jsonl", heldout="t.txt")
    model = ModelEntry(source=text_model(tmp_path / "model"), data=data, tasks=("arc_easy",))
    layout, cell = Layout(tmp_path), Cell("own")
    run(cell, CorpusConfig(calibration=10, valid=4, contrast=8), model, layout)
    folder = layout.corpus(cell)
    assert len(read_texts(folder / "calibration.parquet")) == 10
    assert len(read_texts(folder / "heldout.parquet")) == 30
    train, valid = (read_table(folder / f"{side}.parquet", EXAMPLES) for side in ("train", "valid"))
    assert (len(train), len(valid)) == (16, 4)
    assert not {row["question"] for row in train} & {row["question"] for row in valid}
    contrast = read_table(folder / "contrast.parquet", CONTRAST)
    assert [row["sample_id"] for row in contrast] == list(range(8))
    assert all(row["positive"] != row["negative"] for row in contrast)
    assert read_document(folder / "tasks/tasks.json") == {"embedded": []}


def test_too_few_pairs_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    data = _instructions(tmp_path / "i.jsonl", count=3)
    (tmp_path / "i2.txt").write_text("a text\n")
    data = data.model_copy(update={"calibration": "i2.txt", "heldout": "i2.txt"})
    model = ModelEntry(source=text_model(tmp_path / "model"), data=data)
    with pytest.raises(BadInput, match="3 usable pairs: at least 5"):
        run(Cell("own"), CorpusConfig(), model, Layout(tmp_path))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("train", "valid", "pairs", "expected"),
    [(2000, 200, 2200, 200), (100, 200, 300, 200), (100, 200, 250, 150), (100, 50, 60, 12), (400, 60, 460, 60)],
)
def test_no_more_pairs_are_trained_on_than_asked_for(train: int, valid: int, pairs: int, expected: int) -> None:
    """Where pairs are scarce, a fifth of them validates."""
    config = CorpusConfig(train=train, valid=valid)
    found = Roles(config, ModelEntry(source="a/b"), Path(), "models.m").valid(pairs)
    assert found == expected
    assert pairs - found <= train
