"""Data from the hub: datasets by name and id, what is recorded of them, licences, chats, and revisions that move."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from restorelcc.base.tables import CONTRAST, EXAMPLES, read_metadata, read_table, read_texts
from tests.hub.client import HubProject, go_offline, no_waiting, point_at
from tests.hub.faults import Fault
from tests.hub.fixtures import dataset_card, jsonl, parquet, pico_files
from tests.hub.repositories import folder_files
from tests.hub.server import LoopbackHub
from tests.models.test_response_mask import CHATML, byte_level

ALPACA = [{"instruction": f"Count to {n}.", "input": "", "output": f"Here is {n} : {n}."} for n in range(40)]
WIKITEXT = [
    "",
    " = One = \n",
    "",
    " A line . \n",
    " = = Part = = \n",
    " More . \n",
    " = Other = \n",
    " End . \n",
]
PAPER_DATA = {"calibration": "c4", "instructions": "alpaca", "heldout": "wikitext"}


def stock(hub: LoopbackHub) -> None:
    """The three datasets of the paper's settings, laid out as on the hub."""
    texts = [{"text": f"document {n} " + "word " * 30, "url": "u", "timestamp": "t"} for n in range(20)]
    card = dataset_card({"en": {"train": "en/c4-train.*", "validation": "en/c4-validation.*"}}, "odc-by")
    parts = {"train.00000-of-00002": texts[:10], "train.00001-of-00002": texts[10:], "validation.00000": texts[:2]}
    files = {f"en/c4-{part}.jsonl": jsonl(rows) for part, rows in parts.items()}
    hub.add_dataset("allenai/c4", {"README.md": card, **files}, card={"license": ["odc-by"]})
    card = dataset_card({"default": {"train": "data/train-*"}}, "cc-by-nc-4.0")
    files = {"data/train-00000-of-00001.parquet": parquet(ALPACA)}
    hub.add_dataset("tatsu-lab/alpaca", {"README.md": card, **files}, card={"license": "cc-by-nc-4.0"})
    name = "wikitext-2-raw-v1"
    card = dataset_card({name: {"test": f"{name}/test-*"}}, "cc-by-sa-3.0")
    files = {f"{name}/test-00000-of-00001.parquet": parquet([{"text": line} for line in WIKITEXT])}
    hub.add_dataset("Salesforce/wikitext", {"README.md": card, **files}, card={"license": ["cc-by-sa-3.0", "gfdl"]})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        stock(hub)
        hub.add_model("me/pico", pico_files())
        point_at(hub, tmp_path / "home", monkeypatch)
        yield hub


def _project(tmp_path: Path, **entry: Any) -> HubProject:
    sizes = {"calibration": 4, "train": 20, "valid": 4, "contrast": 10, "hub_characters": 300}
    return HubProject(tmp_path / "project", {"source": "me/pico", "data": PAPER_DATA} | entry, corpus=sizes)


def _corpus(project: HubProject, monkeypatch: pytest.MonkeyPatch, code: int = 0) -> Path:
    assert project.call(monkeypatch, "corpus", "--model", "x") == code
    return project.folder / "data/corpus/x"


def test_the_papers_data_come_by_name_and_their_licences_are_said_once(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    project = _project(tmp_path)
    folder = _corpus(project, monkeypatch)
    said = capfd.readouterr().err
    assert said.count("data licence: ") == 3
    assert "tatsu-lab/alpaca:default:train is under cc-by-nc-4.0 (no commercial use)" in said
    sources = json.loads((folder / "sources.json").read_text())
    commits = {name: hub.dataset(name).branches["main"] for name in ("allenai/c4", "tatsu-lab/alpaca")}
    assert sources["calibration"] == {
        "source": "hub:allenai/c4:en:train",
        "revision": commits["allenai/c4"],
        "rows": {"read": 8, "used": 8, "shortened": 0, "skipped": {}},
        "licence": "odc-by",
    }
    assert sources["instructions"]["revision"] == commits["tatsu-lab/alpaca"]
    texts = read_texts(folder / "calibration.parquet")
    assert len(texts) == 4 and all(len(text) >= 300 for text in texts)
    assert read_metadata(folder / "calibration.parquet")["revision"] == commits["allenai/c4"]
    heldout = read_texts(folder / "heldout.parquet")
    assert "\n\n".join(heldout) == "\n\n".join(WIKITEXT), "the text that WikiText-2 perplexity is published on"
    assert [text.split(" = ")[1] if " = " in text else "" for text in heldout] == ["", "One", "Other"]
    train = read_table(folder / "train.parquet", EXAMPLES)
    known = {(row["instruction"], row["output"]) for row in ALPACA}
    assert len(train) == 20 and all((row["question"], row["response"]) in known for row in train)
    first = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    shutil.rmtree(project.folder / "data")
    _corpus(project, monkeypatch)
    assert "data licence" not in capfd.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.glob("*.*")} == first


def test_only_what_is_needed_of_a_large_dataset_is_read(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _corpus(_project(tmp_path), monkeypatch)
    read = [request.path for request in hub.requests if request.method == "GET" and "c4-train.0" in request.path]
    assert read and not [path for path in read if "00001-of" in path]


@pytest.mark.parametrize("times", [1, None])
def test_rows_go_on_after_a_broken_connection_or_fail_whole(
    times: int | None,
    hub: LoopbackHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.faults.add(Fault("reset", path="alpaca/resolve", method="GET", times=times))
    project = _project(tmp_path)
    with no_waiting(monkeypatch):
        if times:
            _corpus(project, monkeypatch)
            return
        folder = _corpus(project, monkeypatch, code=1)
    assert "tatsu-lab/alpaca" in capsys.readouterr().err
    assert not folder.exists()
    hub.faults.clear()
    _corpus(project, monkeypatch)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"instructions": "hub:me/nothing"}, "no dataset 'me/nothing'"),
        ({"calibration": "hub:allenai/c4:fr"}, "allenai/c4:fr:train cannot be read"),
        ({"heldout": "hub:allenai/c4:en:test"}, "allenai/c4:en:test cannot be read"),
        ({"instructions": "hub:allenai/c4:en", "format": "alpaca"}, "without the column `instruction`"),
    ],
)
def test_a_dataset_that_does_not_fit_is_one_sentence(
    data: dict[str, str],
    message: str,
    hub: LoopbackHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = _corpus(_project(tmp_path, data=PAPER_DATA | data), monkeypatch, code=2)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("restorelcc: ")]
    assert len(said) == 1 and message in said[0], said
    assert not folder.exists()


def test_offline_the_cached_files_of_a_dataset_are_enough(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import snapshot_download

    project = _project(tmp_path)
    with monkeypatch.context() as patch:
        go_offline(patch)
        _corpus(project, patch, code=2)
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    for name in ("allenai/c4", "tatsu-lab/alpaca", "Salesforce/wikitext"):
        snapshot_download(name, repo_type="dataset")
    online = _corpus(project, monkeypatch)
    tables = {path.name: path.read_bytes() for path in online.glob("*.parquet")}
    shutil.rmtree(project.folder / "data")
    hub.requests.clear()
    go_offline(monkeypatch)
    _corpus(project, monkeypatch)
    assert not hub.requests
    assert {path.name: path.read_bytes() for path in online.glob("*.parquet")} == tables


def test_conversations_take_the_chat_template_of_a_model_on_the_hub(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = byte_level(bos=False)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    hub.add_model("me/chat", pico_files(vocab_size=512) | folder_files(tmp_path / "tokenizer"))
    hub.add_model("me/plain", pico_files())
    chats = [
        {"conversations": [{"from": "human", "value": f"Say {n}"}, {"from": "gpt", "value": f"it is {n}"}]}
        for n in range(12)
    ]
    hub.add_dataset("me/chats", {"train.jsonl": jsonl(chats)})
    data = PAPER_DATA | {"instructions": "hub:me/chats"}
    project = _project(tmp_path, source="me/plain", data=data)
    _corpus(project, monkeypatch, code=2)
    assert "no chat template" in capsys.readouterr().err
    project.set(source="me/chat")
    folder = _corpus(project, monkeypatch)
    for row in read_table(folder / "contrast.parquet", CONTRAST):
        number = row["positive"].split()[2].removesuffix("<|im_end|>")
        assert row["question"] == f"\x02<|im_start|>user\nSay {number}<|im_end|>\n<|im_start|>assistant\n"
        assert row["positive"] == f"it is {number}<|im_end|>"
        assert row["negative"].startswith("it is ") and row["negative"] != row["positive"]
    assert json.loads((folder / "sources.json").read_text())["chat_template"] == {"source": "me/chat"}


def test_a_chat_template_that_moved_brings_the_corpus_in_step_too(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = byte_level(bos=False)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    files = pico_files(vocab_size=512) | folder_files(tmp_path / "tokenizer")
    hub.add_model("me/pico", files)
    project = _project(tmp_path, data=PAPER_DATA | {"chat_template": True})
    for stage in ("corpus", "dense"):
        assert project.call(monkeypatch, stage, "--model", "x") == 0
    template, weights = {"chat_template.jinja": b"{{ messages }}"}, "model.safetensors"
    for changed, stages in (
        (template, "corpus@x dense@x"),
        ({weights: pico_files(seed=1, vocab_size=512)[weights]}, "dense@x"),
    ):
        hub.model("me/pico").commit(files | changed)
        assert project.call(monkeypatch, "check") == 1
        assert f"`dvc repro --force --single-item {stages}` takes it" in capsys.readouterr().err


def test_a_revision_that_moved_is_a_choice_and_its_model_alone_is_computed_anew(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = pico_files()
    old = hub.add_model("me/pico", files)
    project = _project(tmp_path)
    for stage in ("corpus", "dense"):
        assert project.call(monkeypatch, stage, "--model", "x") == 0
    assert project.call(monkeypatch, "check") == 0
    reference = project.folder / "data/x/dense/model_ref.json"
    first = reference.read_bytes()

    hub.model("me/pico").commit(files | {"README.md": b"a new card"})
    capsys.readouterr()
    assert project.call(monkeypatch, "check") == 0
    assert "the files in use are the same" in capsys.readouterr().err

    new = hub.model("me/pico").commit(pico_files(seed=1))
    assert project.call(monkeypatch, "check") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    moved = f"revision 'main' of me/pico moved from {old[:12]} to {new[:12]}"
    assert said.startswith(f"restorelcc: failed: models.x: {moved}")
    assert "model.safetensors" in said and "dvc repro --force --single-item dense@x" in said
    assert reference.read_bytes() == first

    project.set(revision=old)
    assert project.call(monkeypatch, "check") == 0, "a pinned commit cannot move"
    project.set(revision=None)
    assert project.call(monkeypatch, "dense", "--model", "x") == 0
    assert json.loads(reference.read_text())["revision"] == new
    assert project.call(monkeypatch, "check") == 0

    hub.dataset("tatsu-lab/alpaca").commit({"README.md": b"empty"})
    assert project.call(monkeypatch, "check") == 0
    assert "the dataset tatsu-lab/alpaca moved" in capsys.readouterr().err
    hub.faults.add(Fault("status", status=503))
    with no_waiting(monkeypatch):
        assert project.call(monkeypatch, "check") == 0, "what is computed stays good while the hub is away"
