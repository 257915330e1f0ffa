"""Calibration texts from files and from the hub (a folder stands in for it: datasets streams both alike)."""

import json
import random
from itertools import count
from pathlib import Path

import pytest

from restorelcc.core.cell import Cell
from restorelcc.core.errors import BadInput
from restorelcc.core.model_entry import DataFiles, ModelEntry
from restorelcc.corpus.calibration import calibration_texts, write_calibration
from restorelcc.corpus.config import CorpusConfig
from restorelcc.corpus.hub import PRESETS, HubData, hub_data, joined, stream_texts
from restorelcc.corpus.stage import run
from restorelcc.io.layout import Layout
from restorelcc.io.tables import read_metadata, read_texts


def _dataset(folder: Path, rows: list[dict]) -> str:
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_sources_are_presets_hub_ids_or_paths() -> None:
    assert hub_data("k", "c4") == HubData("allenai/c4", "en", "train")
    assert hub_data("k", "hub:me/texts") == HubData("me/texts")
    assert hub_data("k", "hub:me/texts:raw:validation") == HubData("me/texts", "raw", "validation")
    assert hub_data("k", "data/c4.jsonl") is None
    for preset in PRESETS.values():
        assert hub_data("k", f"hub:{preset}") == preset
    for wrong in ("hub:", "hub:a/b:", "hub:a/b:c:d:e"):
        with pytest.raises(BadInput, match="write hub:<id>"):
            hub_data("k", wrong)


def test_short_rows_are_joined_and_only_as_many_are_read_as_needed() -> None:
    taken: list[int] = []

    def rows() -> object:
        for number in count():
            taken.append(number)
            yield f"row {number}" if number % 2 else "  "

    texts = joined(rows(), 12)  # type: ignore[arg-type]
    assert [next(texts) for _ in range(2)] == ["row 1\n\nrow 3\n\nrow 5", "row 7\n\nrow 9\n\nrow 11"]
    assert taken[-1] == 11
    assert list(joined(["a", "b"], 0)) == ["a", "b"]
    assert list(joined(["a", "b"], 100)) == ["a\n\nb"]
    assert list(joined(["abc", "b"], 3)) == ["abc"]


def test_texts_and_instructions_stream_from_a_dataset(tmp_path: Path) -> None:
    texts = _dataset(tmp_path / "texts", [{"text": f"story {number}"} for number in range(5)])
    assert stream_texts("k", HubData(texts), 3, 0, "") == (["story 0", "story 1", "story 2"], None)
    alpaca = _dataset(tmp_path / "alpaca", [{"instruction": "Add.", "input": "1 1", "output": "2"}])
    assert stream_texts("k", HubData(alpaca), 3, 0, "{instruction} {input}")[0] == ["Add. 1 1\n2"]
    other = _dataset(tmp_path / "other", [{"label": 1}])
    with pytest.raises(BadInput, match="neither `text` nor `instruction`"):
        stream_texts("k", HubData(other), 3, 0, "")


def test_a_dataset_that_is_not_there_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    texts = _dataset(tmp_path / "texts", [{"text": "story"}])
    for origin in (HubData("nobody/nothing"), HubData(texts, split="missing"), HubData(texts, config="missing")):
        with pytest.raises(BadInput, match=r"cannot be read|HF_HUB_OFFLINE is set") as caught:
            stream_texts("k", origin, 1, 0, "")
        assert "\n" not in str(caught.value)


def test_the_table_records_source_and_digest(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "set", [{"text": f"story {number}"} for number in range(5)])
    (tmp_path / "mine.txt").write_text("one\ntwo\nthree\n")
    config = CorpusConfig(calibration=2, hub_characters=0)
    digests = set()
    for source, expected in ((f"hub:{dataset}", f"hub:{dataset}:default:train"), ("mine.txt", "mine.txt")):
        data = DataFiles(calibration=source, instructions="i", heldout="h")
        for name in ("first", "second"):
            texts, origin = calibration_texts(data, config, tmp_path, random.Random(0))
            write_calibration(tmp_path / name, texts, origin)
        metadata = read_metadata(tmp_path / "first")
        assert metadata["source"] == expected
        assert len(metadata["digest"]) == 64
        assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
        digests.add(metadata["digest"])
    assert len(digests) == 2


@pytest.mark.parametrize("ending", ["txt", "jsonl", "parquet"])
def test_the_stage_takes_calibration_from_files_and_the_hub(ending: str, tmp_path: Path) -> None:
    from restorelcc.io.tables import write_texts

    texts = [f"text {number}" for number in range(9)]
    if ending == "parquet":
        write_texts(tmp_path / "c.parquet", texts)
    rows = texts if ending == "txt" else [json.dumps({"text": text}) for text in texts]
    if ending != "parquet":
        (tmp_path / f"c.{ending}").write_text("\n".join(rows))
    pairs = [{"question": f"q {number}", "response": f"r {number}"} for number in range(20)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs))
    layout = Layout(tmp_path)
    dataset = _dataset(tmp_path / "set", [{"text": text} for text in texts])
    for alias, source in (("local", f"c.{ending}"), ("hub", f"hub:{dataset}")):
        data = DataFiles(calibration=source, instructions="pairs.jsonl", heldout=f"c.{ending}")
        entry = ModelEntry(source="some/model", data=data)
        run(Cell(alias), CorpusConfig(calibration=4, hub_characters=0), entry, layout)
        written = layout.corpus(Cell(alias)) / "calibration.parquet"
        assert len(read_texts(written)) == 4
        assert read_metadata(written)["source"].startswith(source)
