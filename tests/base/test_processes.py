"""A stage ends with the DVC that started it, whatever stands between the two."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.dag import ROOT

STAGE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from restorelcc.base.processes import end_with_parent
end_with_parent()
print("ready", flush=True)
time.sleep(600)
"""
# What DVC does: the shell that $SHELL names runs the command, with the stage's name in its environment.
DVC = """
import os, subprocess, sys
subprocess.run(sys.argv[1:], env=os.environ | {"DVC_STAGE": "dense"})
"""


def lines_between(tmp_path: Path) -> dict[str, list[str]]:
    stage = [sys.executable, "-I", "-S", "-c", STAGE, str(ROOT)]
    script = tmp_path / "stage.sh"
    script.write_text(f"{sys.executable} -I -S -c '{STAGE}' {ROOT}; exit $?\n")
    return {
        "nothing": stage,
        "a shell that stays": ["/bin/sh", str(script)],
        "two that stay": ["/bin/sh", "-c", f"/bin/sh {script}; exit $?"],
    }


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the lock alone protects")
@pytest.mark.parametrize("between", ["nothing", "a shell that stays", "two that stay"])
def test_a_stage_ends_when_dvc_is_killed(tmp_path: Path, between: str) -> None:
    command = [sys.executable, "-I", "-S", "-c", DVC, *lines_between(tmp_path)[between]]
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as dvc:
        assert dvc.stdout
        assert dvc.stdout.readline() == "ready\n"
        before = time.monotonic()
        dvc.kill()
        assert dvc.stdout.read() == "", "the pipe closes when the stage has ended too"
    assert time.monotonic() - before < 300, "it did not sleep on"


def _installed(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`restorelcc corpus --model tiny` of the environment, in another clone."""
    code = "from restorelcc.__main__ import main; main()"
    inherited = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    variables = inherited | {"PYTHONPATH": str(ROOT), "DVC_STAGE": "corpus@tiny"} | environment
    command = [sys.executable, "-P", "-c", code, "corpus", "--model", "tiny"]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_a_stage_runs_the_code_of_the_folder_that_dvc_records(tmp_path: Path) -> None:
    package = tmp_path / "restorelcc"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import os, sys; print(__file__, *sys.argv[1:], os.environ['PYTHONPATH'])")
    done = _installed(tmp_path)
    told = f"{package / '__main__.py'} corpus --model tiny {tmp_path}{os.pathsep}{ROOT}\n"
    assert (done.stdout, done.stderr) == (told, "")

    nested = tmp_path / "in" / "a" / "subfolder"
    nested.mkdir(parents=True)
    package.rename(nested / "restorelcc")
    done = _installed(nested, DVC_ROOT=str(tmp_path))
    assert done.stdout.startswith(str(nested / "restorelcc" / "__main__.py"))


def test_a_stage_begins_again_once(tmp_path: Path) -> None:
    """Where something is put before PYTHONPATH, the code that runs is not what DVC records, and stays it."""
    (tmp_path / "clone" / "restorelcc").mkdir(parents=True)
    (tmp_path / "clone" / "restorelcc" / "__main__.py").touch()
    first = tmp_path / "first"
    first.mkdir()
    (first / "sitecustomize.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})")
    done = _installed(tmp_path / "clone", PYTHONPATH=str(first))
    assert done.returncode == 1
    assert f"DVC records the code in {tmp_path / 'clone' / 'restorelcc'}, and Python imports that of" in done.stderr


def test_a_project_without_code_of_its_own_runs_what_is_installed(tmp_path: Path) -> None:
    done = _installed(tmp_path)
    assert done.returncode == 2 and "params.yaml" in done.stderr
