"""`restorelcc check` says that params.yaml is good when what the grid's models name is there and can be used."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from restorelcc.__main__ import main
from tests import pico
from tests.dag import ROOT

ROWS = "\n".join(json.dumps({"prompt": f"w{number}", "completion": "w1"}) for number in range(9))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose grid has the model `mine` alone, by names: no weight is read."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    data = {"calibration": "texts.txt", "instructions": "pairs.jsonl", "heldout": "texts.txt"}
    content["models"] = {"mine": {"source": "model", "data": data}}
    content["grid"] |= {"model": ["mine"]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (tmp_path / "pairs.jsonl").write_text(ROWS)
    (tmp_path / "texts.txt").write_text("w1 w2\n")
    (tmp_path / "texts.doc").write_text("w1 w2\n")
    (tmp_path / "other.jsonl").write_text('{"columns": "of no format"}')
    (tmp_path / "blank.txt").write_text("\n \n")
    pico.pico().save_pretrained(tmp_path / "model")
    pico.word_tokenizer().save_pretrained(tmp_path / "model")
    for name, family in (("mamba", "mamba"), ("experts", "jetmoe")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(
            json.dumps({"model_type": family, "num_local_experts": 8 * (name == "experts")})
        )
        (tmp_path / name / "model.safetensors").write_bytes(b"")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.json").write_text("[]")
    (tmp_path / "list" / "model.safetensors").write_bytes(b"")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(
        "task: mine_items\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        "dataset_kwargs: {data_files: {test: tasks/items.jsonl}}\n"
        "doc_to_text: question\ndoc_to_choice: choices\ndoc_to_target: gold\nmetric_list: [{metric: acc}]\n"
    )
    (tmp_path / "tasks" / "items.jsonl").write_text(
        "\n".join(json.dumps({"question": "w1", "choices": ["w2", "w3"], "gold": 0}) for _ in range(3))
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _check(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> int:
    monkeypatch.setattr("sys.argv", ["restorelcc", "check", *(part for each in overrides for part in ("--set", each))])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


MINE = "models.mine"
REFUSED = [
    (f"{MINE}.tasks=[arc_easi]", r"'arc_easi', which is no task that lm-eval knows.*did you mean 'arc_easy'"),
    (f"{MINE}.tasks=[nowhere/tasks]", "no such folder or task file"),
    (f"{MINE}.tasks=[./tasks/other.yaml]", "no such folder or task file"),
    (f"{MINE}.data.calibration=nowhere.txt", r"nowhere\.txt does not exist: correct its path"),
    (f"{MINE}.data.heldout=texts.doc", r"texts\.doc has an unknown ending: use \.jsonl"),
    (f"{MINE}.data.instructions=model", r"holds 'model\.safetensors', which is not a data file"),
    (f"{MINE}.data.instructions=other.jsonl", "has the columns 'columns', of which no format is known"),
    (f"{MINE}.data.instructions=texts.txt", r"holds no row that can be used.*models\.mine\.data\.instructions"),
    (f"{MINE}.data.calibration=blank.txt", "holds no row that can be used"),
    (f"{MINE}.data.columns={{question: promt}}", "'prompt', 'completion', of which no format is known"),
    (f"{MINE}.data.chat_template=true", "has no chat template: set it to false"),
    (f"{MINE}.source=./nowhere", r"models\.mine\.source is './nowhere', and there is no such folder"),
    (f"{MINE}.source=/nowhere/model", "there is no such folder: correct the path, or give a hub id"),
    (f"{MINE}.source=tasks/model", "there is a folder 'tasks' here, but no 'tasks/model' in it"),
    (f"{MINE}.source=texts.txt", "a file: give the folder that it lies in"),
    (f"{MINE}.source=mamba", "model family 'mamba' is not supported: known are llama"),
    (f"{MINE}.source=experts", "is a mixture of experts"),
    (f"{MINE}.source=list", "holds a list, where an object is expected"),
    (f"{MINE}.source=tasks", "no .safetensors file"),
    ("corpus.encoder=./nowhere", r"corpus\.encoder is './nowhere', and there is no such folder"),
    ("evaluate.datasets=nowhere", r"evaluate\.datasets is 'nowhere', and there is no such folder"),
    ("evaluate.datasets={rte: nowhere}", r"evaluate\.datasets\.rte is 'nowhere', and there is no such folder"),
]


@pytest.mark.parametrize(("override", "message"), REFUSED, ids=[override for override, _ in REFUSED])
def test_what_cannot_be_used_is_refused(
    override: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # lm-eval's own index of tasks, which is asked before a name is refused, takes ten seconds.
    index = SimpleNamespace(all_tasks=["arc_easy", "arc_challenge"])
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", SimpleNamespace(TaskManager=lambda include_path: index))
    before = sorted(folder.rglob("*"))
    assert _check(monkeypatch, override) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert said.startswith("restorelcc: error: ") and said.count("\n") == 1, said
    assert sorted(folder.rglob("*")) == before


def test_an_external_checkpoint_is_looked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = "grid.pruning=[external-theirs]"
    assert _check(monkeypatch, grid, "prune.external={mine: {theirs: {source: ./nowhere}}}") == 2
    assert "prune.external.mine.theirs.source is './nowhere'" in capsys.readouterr().err
    assert _check(monkeypatch, grid, "prune.external={mine: {theirs: {source: mamba}}}") == 2
    assert "mamba" in capsys.readouterr().err
    assert _check(monkeypatch, grid, "prune.external={mine: {theirs: {source: model}}}") == 0


@pytest.mark.usefixtures("known_tasks")
def test_what_is_good_is_good_and_several_problems_are_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _check(monkeypatch, f"{MINE}.tasks=[paper-7, tasks, mine_items, copa]") == 0
    assert "params.yaml is good" in capsys.readouterr().err
    assert _check(monkeypatch, f"{MINE}.source=some/model") == 0, "a hub id"
    (folder / "model" / "chat_template.jinja").write_text("{{ messages }}")
    assert _check(monkeypatch, f"{MINE}.data.chat_template=true") == 0
    capsys.readouterr()
    assert _check(monkeypatch, "evaluate.datasets=nowhere", f"{MINE}.source=./nowhere") == 2
    assert "(and 1 more)" in capsys.readouterr().err


@pytest.mark.usefixtures("known_tasks")
def test_tracked_files_that_were_edited_are_noted_until_they_are_added(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dvc.repo import Repo

    with Repo.init(str(folder), no_scm=True) as repo:
        repo.add(["pairs.jsonl", "model", "tasks/items.jsonl", "other.jsonl"])
        capsys.readouterr()
        assert _check(monkeypatch, f"{MINE}.tasks=[tasks]") == 0
        assert ".dvc" not in capsys.readouterr().err
        for name in (
            "pairs.jsonl",
            "model/README.md",
            "tasks/items.jsonl",
            "other.jsonl",
        ):  # of which none reads the last
            with (folder / name).open("a") as file:
                file.write("\n")
        assert _check(monkeypatch, f"{MINE}.tasks=[tasks]") == 0
        notes = [line for line in capsys.readouterr().err.splitlines() if ".dvc" in line]
        assert notes == [
            f"restorelcc: note: `{name}` is not what {name}.dvc names: run `dvc add {name}` and commit it"
            for name in ("model", "pairs.jsonl", "tasks/items.jsonl")
        ]
        repo.add(["pairs.jsonl", "model", "tasks/items.jsonl"])
    assert _check(monkeypatch, f"{MINE}.tasks=[tasks]") == 0
    assert ".dvc" not in capsys.readouterr().err
