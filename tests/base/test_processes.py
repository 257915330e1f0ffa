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
