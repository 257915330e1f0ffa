"""Old names of keys: read, said once, renamed in the file without touching another byte, refused beside the new one.

Old names of verbs and options: taken, and said.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from restorelcc.base.errors import BadInput
from restorelcc.base.messages import LOG
from restorelcc.cli.app import app
from restorelcc.pipeline import renamed
from restorelcc.pipeline.params import load_params
from restorelcc.pipeline.renamed import rename_in_file
from tests.dag import ROOT

NEW = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("recovery: [] #", "recovery: [bias] #")
# As the file stood before: comments, spacing and flow style included.
OLD = (
    NEW.replace("  recovery: [bias] #", "  baseline: [bias] #")
    .replace("\nrecover: #", "\nbaseline: #")
    .replace("      recover: {", "      baseline: {")
)
NAMES = ["grid.baseline", "baseline", "models.tiny.settings.baseline"]


@pytest.fixture(autouse=True)
def _said_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renamed, "_said", set())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    assert OLD.count("baseline") == 3
    path = tmp_path / "params.yaml"
    path.write_text(OLD, encoding="utf-8")
    return path


def test_old_names_are_read_with_one_warning_each(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file.parent / "new.yaml").write_text(NEW, encoding="utf-8")
    assert load_params(file) == load_params(file) == load_params(file.parent / "new.yaml")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in lines] == NAMES


def test_the_file_is_renamed_and_nothing_else_of_it_changes(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(rename_in_file(file)) == 3
    assert file.read_text(encoding="utf-8") == NEW
    assert rename_in_file(file) == []
    load_params(file)
    assert not capsys.readouterr().err
    assert sorted(path.name for path in file.parent.iterdir()) == ["params.yaml"]


def test_old_names_in_set(file: Path) -> None:
    params = load_params(file, ("grid.baseline=[lora]", "baseline.rank=3"))
    assert (params.grid.recovery, params.recover.rank) == (("lora",), 3)


def test_both_names_are_refused(file: Path) -> None:
    content = yaml.safe_load(OLD)
    content["grid"]["recovery"] = []
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(BadInput, match=r"both grid\.recovery and grid\.baseline, its old name: remove grid\.baseline"):
        load_params(file)


@pytest.mark.parametrize(
    ("given", "verb", "old"),
    [
        ("recover -b bias", "recover", []),
        ("recover --recovery=bias", "recover", []),
        ("recover --baseline bias", "recover", ["--baseline"]),
        ("evaluate_recovered --baseline=bias", "evaluate_recovered", ["--baseline"]),
        ("baseline --recovery bias", "recover", ["restorelcc baseline"]),
        ("evaluate_baseline -b bias", "evaluate_recovered", ["restorelcc evaluate_baseline"]),
        ("baseline --baseline bias", "recover", ["restorelcc baseline", "--baseline"]),
    ],
)
def test_old_verbs_and_options_are_taken_with_one_warning_each(
    given: str, verb: str, old: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, dict[str, str]]] = []
    monkeypatch.setattr("restorelcc.cli.app._run", lambda name, *_, **names: ran.append((name, names)))
    for _ in range(2):
        app([*given.split(), "-m", "tiny", "-p", "wanda-0.5"], standalone_mode=False)
    assert ran == 2 * [(verb, {"model": "tiny", "pruning": "wanda-0.5", "recovery": "bias"})]
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" is now called ")[0] for line in lines] == [f"restorelcc: warning: {name}" for name in old]
    assert all(line.endswith("; the old name is read for now") for line in lines)


def test_the_warning_is_json_where_all_is_and_silent_where_only_errors_are_said(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LOG, "json")
    load_params(file)
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["level"], line["message"].split()[0]) for line in told] == [("warning", name) for name in NAMES]
    monkeypatch.setenv(LOG, "quiet")
    monkeypatch.setattr(renamed, "_said", set())
    load_params(file)
    assert not capsys.readouterr().err


def test_a_command_says_it_and_dvc_can_read_the_file_after_inputs(file: Path) -> None:
    command = [sys.executable, "-m", "restorelcc", "inputs", "--params", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "grid.baseline was renamed to grid.recovery" in done.stderr
    assert "recovery" in yaml.safe_load(file.read_text(encoding="utf-8"))["grid"]
