"""Settings of one run reach DVC and the stages, and params.yaml stays as it is."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from restorelcc.cli.run import run
from restorelcc.pipeline import one_run
from restorelcc.pipeline.overrides import put_over
from restorelcc.pipeline.params import load_params
from restorelcc.pipeline.running import held_lock
from tests.dag import ROOT

STAGE = """
import pathlib, sys
name = sys.argv[1]
if name == "bad":
    sys.exit(1)
pathlib.Path(name).write_text("done")
"""
PIPELINE = """
stages:
  one:
    matrix: {model: "${grid.model}"}
    cmd: %s stage.py ${item.model}
    params: [prune.samples]
    outs: ["${item.model}"]
"""
PARAMS = b"# a comment that stays\ngrid:  {model: [a]}   # and this\nprune: {samples: 4}\nmodels: {}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "dvc.yaml").write_text(PIPELINE % sys.executable)
    (tmp_path / "params.yaml").write_bytes(PARAMS)
    Repo.init(str(tmp_path), no_scm=True).close()
    return tmp_path


def reproduce(folder: Path, *settings: str) -> None:
    with (
        one_run.dvc_reads(folder / "params.yaml", lambda content: put_over(content, settings)),
        chdir(folder),
        Repo(str(folder)) as repo,
    ):
        repo.reproduce()


def test_dvc_runs_the_models_of_the_run_and_records_its_settings(folder: Path) -> None:
    reproduce(folder, "grid.model=[b,c]", "prune.samples=8")
    assert (folder / "b").exists() and (folder / "c").exists() and not (folder / "a").exists()
    stages = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    assert stages["one@b"]["params"] == {"params.yaml": {"prune.samples": 8}}
    assert (folder / "params.yaml").read_bytes() == PARAMS
    reproduce(folder)
    assert (folder / "a").exists()
    stages = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    assert stages["one@a"]["params"] == {"params.yaml": {"prune.samples": 4}}, "the next run has the file's again"


def test_after_a_failure_the_file_is_the_same_too(folder: Path) -> None:
    with pytest.raises(Exception, match="bad"):
        reproduce(folder, "grid.model=[bad]")
    assert (folder / "params.yaml").read_bytes() == PARAMS
    reproduce(folder)
    assert (folder / "a").exists()


def test_stages_take_the_settings_and_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = one_run.environment(("report.decimals=4", "grid.head_ratio=[0.5]"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    shipped = load_params(ROOT / "params.yaml")
    assert shipped.report.decimals != 4, "a variable that was left in a shell changes nothing"
    monkeypatch.setenv("DVC_STAGE", "report")
    found = load_params(ROOT / "params.yaml")
    assert (found.report.decimals, found.grid.head_ratio) == (4, (0.5,))
    assert json.loads(variables[one_run.VARIABLE]) == ["report.decimals=4", "grid.head_ratio=[0.5]"]
    assert one_run.environment(()) == {}


def test_a_run_waits_for_the_one_before_it_and_then_looks_at_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both would lay out the settings of their models in one place."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr("restorelcc.cli.check.check", lambda _, settings, *__, **___: asked.append(tuple(settings)))
    monkeypatch.setattr("restorelcc.pipeline.reproduce.reproduce", lambda *_: None)
    monkeypatch.setattr("restorelcc.stages.report.terminal.print_results", lambda *_, **__: None)
    with ThreadPoolExecutor(1) as pool:
        with held_lock(tmp_path / ".work/locks/run"):
            second = pool.submit(run, params=tmp_path / "params.yaml", set_=["prune.samples=64"])
            said = ""
            while "waiting" not in said and not second.done():
                time.sleep(0.05)
                said += capsys.readouterr().err
            assert said == f"restorelcc: run is running as process {os.getpid()}: waiting\n"
            assert not asked and not (tmp_path / "data").exists()
        second.result(60)
    assert asked == [("prune.samples=64",)]
    assert (tmp_path / "data/inputs/tiny/settings/prune.json").is_file()
