"""Old names of keys: read, said once, renamed in the file without touching another byte, refused beside the new one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from restorelcc.base.errors import BadInput
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


def test_a_command_says_it_and_dvc_can_read_the_file_after_inputs(file: Path) -> None:
    command = [sys.executable, "-m", "restorelcc", "inputs", "--params", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "grid.baseline was renamed to grid.recovery" in done.stderr
    assert "recovery" in yaml.safe_load(file.read_text(encoding="utf-8"))["grid"]
