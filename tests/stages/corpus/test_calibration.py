"""Calibration texts from files and from the hub (folders stand in for it: datasets streams both alike)."""

import json
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from restorelcc.base.cell import Cell
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import DataFiles, ModelEntry
from restorelcc.base.tables import read_metadata, read_texts
from restorelcc.stages.corpus import CorpusConfig
from restorelcc.stages.corpus.account import Account
from restorelcc.stages.corpus.hub_rows import PRESETS, HubData, hub_data, joined, named_dataset
from restorelcc.stages.corpus.sources import Found, calibration_texts
from restorelcc.stages.corpus.stage import run, write_calibration
from tests.stages.corpus.sources import text_model

COMMIT = "0" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose folders stand in for datasets of the hub."""

    def stream(origin: HubData, commit: str, skip: int) -> Iterable[dict[str, Any]]:
        assert commit == COMMIT
        rows = load_dataset(str(tmp_path / "hub" / origin.dataset), origin.config, split=origin.split, streaming=True)
        return rows.skip(skip) if skip else rows

    monkeypatch.setattr("restorelcc.stages.corpus.hub_rows._stream", stream)
    monkeypatch.setattr("restorelcc.stages.corpus.hub_rows.resolved_commit", lambda *_: COMMIT)
    monkeypatch.setattr("restorelcc.stages.corpus.licences.licence_of", lambda *_: None)
    return tmp_path / "hub"


def _dataset(folder: Path, rows: list[dict]) -> str:
    """Its id on the hub."""
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder.name


def _calibration(source: str, count: int, characters: int = 0, **options: str) -> Found[str]:
    data = DataFiles(calibration=source, instructions="i", heldout="h", **options)
    return calibration_texts(data, CorpusConfig(calibration=count, hub_characters=characters), Path("/"))


def test_sources_are_presets_hub_ids_or_paths() -> None:
    assert named_dataset("k", "c4") == HubData("allenai/c4", "en", "train")
    assert named_dataset("k", "hub:me/texts") == HubData("me/texts")
    assert named_dataset("k", "hub:me/texts:raw:validation") == HubData("me/texts", "raw", "validation")
    assert named_dataset("k", "data/c4.jsonl") is None
    for preset in PRESETS.values():
        assert named_dataset("k", f"hub:{preset}") == preset
    for wrong in ("hub:", "hub:a/b:", "hub:a/b:c:d:e"):
        with pytest.raises(BadInput, match="write hub:<id>"):
            named_dataset("k", wrong)


def test_a_folder_of_a_datasets_name_is_not_read_for_it(tmp_path: Path) -> None:
    """`datasets` would read it, and no change of its files would run anything."""
    assert hub_data("k", "c4", tmp_path) == PRESETS["c4"]
    (tmp_path / "allenai/c4").mkdir(parents=True)
    (tmp_path / "rows").mkdir()
    without = "give the folder without 'hub:', or rename it"
    for source, name, do in (
        ("hub:./rows", "./rows", without),
        (f"hub:{tmp_path}/rows", f"{tmp_path}/rows", without),
        ("c4", "allenai/c4", "rename it"),
    ):
        with pytest.raises(BadInput, match=rf"^k is '{source}'.* a folder '{name}' here, which .* instead: {do}$"):
            hub_data("k", source, tmp_path)


def test_short_rows_are_joined_and_only_as_many_are_read_as_needed() -> None:
    taken: list[int] = []

    def rows() -> object:
        for number in count():
            taken.append(number)
            yield number, f"row {number}"

    odd = ((number, text) for number, text in rows() if number % 2)  # type: ignore[attr-defined]
    account = Account()
    texts = joined(odd, 12, account)
    assert [next(texts) for _ in range(2)] == ["row 1\n\nrow 3\n\nrow 5", "row 7\n\nrow 9\n\nrow 11"]
    assert taken[-1] == 11 and account.used == 6
    for given, characters, expected, left in (("a b", 0, "a b", 0), ("a b", 100, "a\n\nb", 0), ("abc b", 3, "abc", 1)):
        account = Account()
        found = list(joined(enumerate(given.split(), 1), characters, account))
        assert found == expected.split(" "), given
        assert account.skipped == ({"too short a rest": 1} if left else {})


def test_texts_and_instructions_stream_from_a_dataset(hub: Path) -> None:
    texts = _dataset(hub / "texts", [{"text": f"story {number}"} for number in range(5)])
    found = _calibration(f"hub:{texts}", 3)
    assert found.items == ["story 0", "story 1", "story 2"]
    assert found.origin == {
        "source": f"hub:{texts}:default:train",
        "revision": COMMIT,
        "rows": {"read": 3, "used": 3, "shortened": 0, "skipped": {}},
    }
    alpaca = _dataset(hub / "alpaca", [{"instruction": "Add.", "input": "1 1", "output": "2"}])
    assert _calibration(f"hub:{alpaca}", 3, template="{instruction} {input}").items == ["Add. 1 1\n2"]
    other = _dataset(hub / "other", [{"label": 1}])
    with pytest.raises(BadInput, match="'label', of which no format is known"):
        _calibration(f"hub:{other}", 3)


def test_a_dataset_that_is_not_there_is_bad_input(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    texts = _dataset(hub / "texts", [{"text": "story"}])
    for origin in ("nobody/nothing", f"{texts}:default:missing", f"{texts}:missing"):
        with pytest.raises(BadInput, match=r"cannot be read|HF_HUB_OFFLINE is set") as caught:
            _calibration(f"hub:{origin}", 1)
        assert "\n" not in str(caught.value)


def test_the_table_records_source_and_digest(hub: Path, tmp_path: Path) -> None:
    dataset = _dataset(hub / "set", [{"text": f"story {number}"} for number in range(5)])
    (tmp_path / "mine.txt").write_text("one\ntwo\nthree\n")
    config = CorpusConfig(calibration=2, hub_characters=0)
    digests = set()
    for source, expected in ((f"hub:{dataset}", f"hub:{dataset}:default:train"), ("mine.txt", "mine.txt")):
        data = DataFiles(calibration=source, instructions="i", heldout="h")
        for name in ("first", "second"):
            found = calibration_texts(data, config, tmp_path)
            write_calibration(tmp_path / name / "calibration.parquet", found.items, found.origin)
        metadata = read_metadata(tmp_path / "first" / "calibration.parquet")
        assert metadata["source"] == expected
        assert len(metadata["digest"]) == 64
        assert (tmp_path / "first" / "calibration.parquet").read_bytes() == (
            tmp_path / "second" / "calibration.parquet"
        ).read_bytes()
        digests.add(metadata["digest"])
    assert len(digests) == 2


@pytest.mark.parametrize("ending", ["txt", "jsonl", "parquet"])
def test_the_stage_takes_calibration_from_files_and_the_hub(ending: str, hub: Path, tmp_path: Path) -> None:
    from restorelcc.base.tables import write_texts

    texts = [f"text {number}" for number in range(9)]
    if ending == "parquet":
        write_texts(tmp_path / "c.parquet", texts)
    rows = texts if ending == "txt" else [json.dumps({"text": text}) for text in texts]
    if ending != "parquet":
        (tmp_path / f"c.{ending}").write_text("\n".join(rows))
    pairs = [{"question": f"q {number}", "response": f"r {number}"} for number in range(20)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs))
    layout = Layout(tmp_path)
    dataset = _dataset(hub / "set", [{"text": text} for text in texts])
    for alias, source in (("local", f"c.{ending}"), ("hub", f"hub:{dataset}")):
        data = DataFiles(calibration=source, instructions="pairs.jsonl", heldout=f"c.{ending}")
        entry = ModelEntry(source=text_model(tmp_path / "model"), data=data)
        run(Cell(alias), CorpusConfig(calibration=4, hub_characters=0), entry, layout)
        written = layout.corpus(Cell(alias)) / "calibration.parquet"
        assert len(read_texts(written)) == 4
        assert read_metadata(written)["source"].startswith(source)
