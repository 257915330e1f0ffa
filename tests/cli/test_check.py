"""`restorelcc check --model`: a user's data read through before anything runs."""

from __future__ import annotations

import json
import os
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from restorelcc.__main__ import main
from restorelcc.base.cell import Cell
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.cli import doctor, read_through
from restorelcc.cli.app import app
from restorelcc.pipeline.params import load_params
from restorelcc.pipeline.versions import code_digest
from restorelcc.stages.inputs import stage as inputs
from tests import pico
from tests.dag import ROOT
from tests.stages.prune.project import words

pytestmark = pytest.mark.usefixtures("known_tasks")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one model `mine` and its own data."""
    pico.pico("opt", max_position_embeddings=64).save_pretrained(tmp_path / "model")
    pico.word_tokenizer().save_pretrained(tmp_path / "model")
    rows: list[dict[str, Any]] = [{"prompt": words(5, n), "completion": words(3, 100 + n)} for n in range(30)]
    rows += [{"prompt": words(4, 200), "completion": words(90, 201)}, {"prompt": "", "completion": "x"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "texts.txt").write_text("\n".join(words(20, n) for n in range(9)))
    (tmp_path / "heldout.txt").write_text(f"{words(30, 300)}\n{rows[0]['prompt']} {rows[0]['completion']}\n")
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    data = {"calibration": "texts.txt", "instructions": "pairs.jsonl", "heldout": "heldout.txt"}
    content["models"] |= {"mine": {"source": "model", "data": data}}
    content["prune"] |= {"samples": 8, "sequence_length": 64}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _check(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["restorelcc", "check", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_data_of_a_model_are_read_through_and_nothing_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    assert _check(monkeypatch, "--model", "mine", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(folder.rglob("*")) == before
    assert found["max_tokens"] == 64 and found["problems"] == found["notes"] == []
    pairs = found["roles"]["instructions"]
    assert (pairs["format"], pairs["columns"], pairs["count"]) == ("pairs", ["prompt", "completion"], 31)
    rows = {"read": 32, "used": 31, "shortened": 1, "skipped": {"empty question": {"count": 1, "first": 32}}}
    assert pairs["rows"] == rows
    assert pairs["tokens"] == {"min": 8, "median": 8, "max": 64, "sum": 30 * 8 + 64}
    assert found["roles"]["calibration"]["tokens"] == {"min": 20, "median": 20, "max": 20, "sum": 180}
    assert found["calibration"] == {"samples": 8, "sequence_length": 64, "sequences": 8, "tokens": 160}
    assert (found["overlap"]["texts"], found["overlap"]["of"]) == (1, 2)
    assert _check(monkeypatch, "--model", "mine") == 0
    said = capsys.readouterr().out
    assert "8 sequences, 160 tokens, of the 8 x 64 = 512" in said and "1 of 2 held-out texts" in said


def test_of_data_that_the_model_writes_itself_the_questions_are_read_and_nothing_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [{"prompt": words(5, number)} for number in range(30)]
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    content = yaml.safe_load((folder / "params.yaml").read_text())
    content["models"]["mine"]["data"] |= {"calibration": "self", "instructions": "self:asked.jsonl"}
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    before = sorted(folder.rglob("*"))
    assert _check(monkeypatch, "--model", "mine", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(folder.rglob("*")) == before
    assert found["roles"]["instructions"]["count"] == 30 and found["roles"]["instructions"]["tokens"]["median"] == 5
    assert found["roles"]["calibration"]["source"] == "asked.jsonl" and "calibration" not in found
    assert found["notes"] == [
        "calibration and instructions: only the questions are read; the model answers them in the stage corpus"
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pairs.jsonl", b'{"prompt": "w5", "completion": "w6"}\n{"prompt": "w\xe9"}', "line 2 of .*pairs.jsonl"),
        ("pairs.jsonl", b'{"prompt": "w5", "completion": ["w6"]}', "column 'completion' is a list"),
        ("pairs.jsonl", b'{"prompt": "w5", "completion": "w6"}', "has 1 usable pairs: at least 5 are needed"),
        ("texts.txt", b"w5 w6\n", "the calibration texts hold 2 tokens, less than one sequence"),
    ],
)
def test_a_problem_is_one_sentence_and_exit_code_2_and_the_rest_is_read_all_the_same(
    folder: Path,
    name: str,
    content: bytes,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / name).write_bytes(content)
    assert _check(monkeypatch, "--model", "mine", "--json") == 2
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert len(found["problems"]) == 1
    assert found["roles"]["heldout"]["count"] == 2
    error = told.err.splitlines()[-1]
    assert error == f"restorelcc: error: {found['problems'][0]}"
    assert re.search(message, error)
    assert _check(monkeypatch, "--model", "mine") == 2


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n"


@pytest.mark.parametrize(
    ("name", "content", "set_", "message"),
    [
        ("pairs.jsonl", POINTER, "seed=1", "pairs.jsonl is a pointer of Git LFS"),
        ("pairs.jsonl", b'{"ask": "w5", "reply": "w6"}', "seed=1", "of which no format is known"),
        ("pairs.jsonl", b'{"prompt": "w5", "completion": "w6"}\n{"prompt": 1', "seed=1", "line 2 of .*pairs.jsonl"),
        ("heldout.txt", b"\x1f\x8b\x08", "seed=1", "heldout.txt is cut off or damaged"),
        (
            "tasks/mine.yaml",
            b"task: mine\ndataset_path: json\n",
            "models.mine.tasks=[tasks]",
            "names neither a test_split",
        ),
        ("tasks/mine.yaml", b"- 1", "models.mine.tasks=[tasks]", "cannot be read"),
        ("texts.txt", b"w5", "models.mine.tasks=[arc_easi]", "did you mean 'arc_easy'"),
    ],
)
def test_files_are_looked_at_before_a_run(
    folder: Path,
    name: str,
    content: bytes,
    set_: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "tasks").mkdir()
    (folder / name).write_bytes(content)
    set_ = f"corpus.{set_}" if set_.startswith("seed") else set_
    assert _check(monkeypatch, "--set", "grid.model=[mine]", "--set", set_) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, error), error


def test_what_was_read_by_the_stage_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, cell, of_mine = Layout(folder), Cell("mine"), ("--set", "grid.model=[mine]")

    def computed() -> None:
        inputs.run(cell, load_params(folder / "params.yaml").named("mine"), layout)
        layout.sources(cell).parent.mkdir(parents=True, exist_ok=True)
        layout.sources(cell).write_text("{}")

    def read_again(*more: str) -> bool:
        read.clear()
        assert _check(monkeypatch, *of_mine, *more) == 0
        return bool(read)

    read: list[object] = []
    monkeypatch.setattr(read_through, "check_first_rows", lambda *given: read.append(given))
    assert read_again(), "nothing was computed yet"
    computed()
    assert not read_again()
    os.utime(folder / "texts.txt")
    assert read_again()
    computed()
    shutil.copy(folder / "texts.txt", folder / "old.txt")
    os.utime(folder / "old.txt", (1, 1))
    assert read_again("--set", "models.mine.data.calibration=old.txt"), "another file, older than the result"
    assert read_again("--set", "models.mine.data.format=pairs"), "the same file, read in another way"
    computed()
    assert not read_again()
    (folder / "old.txt").replace(folder / "texts.txt")
    assert read_again(), "an older file in the place of the file"


def test_installed_code_that_is_not_the_projects_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`dvc repro` would refuse every stage, and `check` and `doctor` come before it."""
    (folder / "versions" / "code").mkdir(parents=True)
    (folder / "versions" / "numerics").write_text(f"numpy=={version('numpy')}\n")
    (folder / "versions" / "code" / "base").write_text(f"{code_digest('base')}\n")
    assert _check(monkeypatch) == 0
    assert "versions" not in capsys.readouterr().err
    (folder / "versions" / "code" / "base").write_text("0\n")
    (folder / "versions" / "numerics").write_text("numpy==0.1\n")
    assert _check(monkeypatch) == 0
    told = capsys.readouterr().err
    named = (
        "the installed code of restorelcc/base is not that of versions/code: run `restorelcc versions` to compute again"
    )
    assert f"note: no stage of `dvc repro` will run: {named}" in told
    assert f"installed is numpy {version('numpy')} where versions/ has 0.1: run `restorelcc versions`" in told
    faults = {finding.text for finding in doctor._packages(folder) if finding.fault}
    assert any(text.startswith(named) for text in faults)


def test_calibration_is_cut_to_the_models_context(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the stage does: 64 tokens here, and not the 2,048 of the section."""
    assert _check(monkeypatch, "--model", "mine", "--json", "--set", "prune.sequence_length=2048") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == []
    assert found["calibration"] == {"samples": 8, "sequence_length": 64, "sequences": 8, "tokens": 160}


def test_items_of_own_tasks_are_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tasks").mkdir()
    items = [{"question": "w5", "choices": ["w6", "w7"], "gold": 0}] * 3
    (folder / "tasks" / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    task = {"task": "mine_items", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice"}
    task |= {"dataset_kwargs": {"data_files": {"test": str(folder / "tasks" / "items.jsonl")}}}
    task |= {"doc_to_text": "question", "doc_to_choice": "choices", "doc_to_target": "gold"}
    task |= {"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}
    (folder / "tasks" / "mine_items.yaml").write_text(yaml.safe_dump(task))

    def tasks(listed: str, *more: str, model: str = "mine") -> tuple[dict[str, int] | None, str]:
        _check(monkeypatch, "--model", model, "--json", "--set", f"models.{model}.tasks={listed}", *more)
        found = json.loads(capsys.readouterr().out)
        return found["tasks"], " ".join(found["problems"])

    assert tasks("[tasks, arc_easy]") == ({"mine_items": 3}, "")
    assert tasks("[tasks/mine_items.yaml]") == ({"mine_items": 3}, "")
    assert tasks("[arc_easy]") == ({}, "")
    assert "'/nowhere/x/', which is not a folder or file of tasks" in tasks("[tasks, /nowhere/x/]")[1]
    assert "did you mean 'arc_easy'" in tasks("[arc_easi]")[1]
    assert "the metric 'bogus' of task 'mine_items', which has acc" in tasks("[{name: tasks, metric: bogus}]")[1]
    assert "num_fewshot 1 and takes its examples from 'test'" in tasks("[{name: tasks, num_fewshot: 1}]")[1]
    # The embedded model brings its data, and may have tasks of the user's own beside its own.
    assert tasks("[tasks]", model="tiny") == tasks("[embedded, tasks]", model="tiny") == ({"mine_items": 3}, "")
    assert tasks("[{name: embedded, metric: acc}]", model="tiny") == ({}, "")
    assert "did you mean 'arc_easy'" in tasks("[arc_easi]", model="tiny")[1]
    assert "the metric 'bogus'" in tasks("[{name: tasks, metric: bogus}]", model="tiny")[1]
    assert _check(monkeypatch, "--model", "tiny", "--set", "models.tiny.tasks=[embedded, tasks]") == 0
    assert "Task mine_items: 3 items" in capsys.readouterr().out
    assert _check(monkeypatch, "--set", "models.tiny.tasks=[embedded, tasks]") == 0, capsys.readouterr().err
    monkeypatch.setenv("HOME", str(folder))
    assert tasks("[~/tasks]") == ({"mine_items": 3}, "")
    # Data of the hub, of which evaluate.datasets has a copy.
    (folder / "copies" / "some" / "set").mkdir(parents=True)
    (folder / "copies" / "some" / "set" / "test.jsonl").write_text("\n".join(map(json.dumps, items[:2])))
    elsewhere = task | {"dataset_path": "some/set", "dataset_kwargs": {}}
    (folder / "tasks" / "mine_items.yaml").write_text(yaml.safe_dump(elsewhere))
    assert tasks("[tasks]", "--set", "models.mine.settings={evaluate: {datasets: copies}}") == ({"mine_items": 2}, "")


@pytest.mark.parametrize("model", ["mine", "tiny"])
def test_what_is_not_read_is_there_too(
    model: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copies of data sets, for one, which only the tasks of the hub would read."""
    settings = f"models.{model}.settings={{evaluate: {{datasets: nowhere}}}}"
    (folder / "nowhere").mkdir()
    assert _check(monkeypatch, "--model", model, "--set", settings) == 0
    (folder / "nowhere").rmdir()
    assert _check(monkeypatch, "--model", model, "--set", settings) == 2
    error = "restorelcc: error: evaluate.datasets is 'nowhere', and there is no such folder"
    assert error in capsys.readouterr().err
    assert _check(monkeypatch, "--model", model, "--json", "--set", settings) == 2
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 1


def test_without_a_model_check_is_what_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _check(monkeypatch) == 0
    assert "params.yaml is good: 4 models to evaluate" in capsys.readouterr().err
    assert _check(monkeypatch, "--model", "tiny") == 0
    assert "brings its data itself" in capsys.readouterr().err
    assert _check(monkeypatch, "--model", "mien") == 2
    assert "did you mean 'mine'" in capsys.readouterr().err
    assert _check(monkeypatch, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["params"], len(found["evaluated"]), found["stale"]) == ("params.yaml", 4, [])
    assert any("does not count for tiny" in note for note in found["notes"])


@pytest.mark.parametrize(("device", "there", "sentence"), [("cuda", 0, "shows no GPU"), ("cuda:3", 2, "shows 2 GPUs")])
def test_a_gpu_that_is_not_there_is_told_before_anything_runs(
    device: str,
    there: int,
    sentence: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is no error: the results may be there already."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: there > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    assert _check(monkeypatch, "--set", f"models.tiny.device={device}") == 0
    told = capsys.readouterr().err
    assert f"models.tiny.device is '{device}', but this machine {sentence}" in told
    assert "until then only stages run whose results are there already" in told


@pytest.mark.parametrize("section", ["capture", "probe", "compensate", "recover"])
def test_no_later_stage_may_allow_less_than_rows_are_fitted_to(
    section: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--set", f"{section}.max_tokens=512"]
    assert _check(monkeypatch, *short) == 0, "the embedded model alone is in the grid"
    assert _check(monkeypatch, *short, "--set", "grid.model=[mine]") == 2
    told = capsys.readouterr().err
    assert f"{section}.max_tokens is 512 for mine, below corpus.max_tokens 1024" in told
    assert _check(monkeypatch, *short, "--model", "mine") == 2
    assert _check(monkeypatch, *short, "--set", "corpus.max_tokens=512", "--model", "mine") == 0


def test_a_list_of_the_grid_that_dvc_wants_is_missed_in_one_sentence(tmp_path: Path) -> None:
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(re.sub(r"(?m)^  speed: \[\].*\n", "", text), encoding="utf-8")
    with pytest.raises(BadInput, match=r"grid\.speed is missing, which dvc\.yaml multiplies out: add `speed: \[\]`"):
        app(["check", "--params", str(tmp_path / "params.yaml")], standalone_mode=False)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    app(["check", "--params", str(tmp_path / "params.yaml")], standalone_mode=False)
