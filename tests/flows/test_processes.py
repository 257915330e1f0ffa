"""What a stage does with locks, signals and its parent. The real stage code; no Prefect."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from restorelcc.base.errors import BadInput
from restorelcc.pipeline.lockfile import heal, merge, read_lock
from restorelcc.pipeline.running import held_lock, lock_owner
from restorelcc.pipeline.versions import (
    FOLDER,
    check_versions,
    differences,
    installed,
    read_groups,
    write_version,
    write_versions,
)
from tests.dag import ROOT
from tests.flows.servers import wait_for
from tests.flows.test_restore import alive

HOLD = """
import sys, time
from pathlib import Path
from restorelcc.base.cell import Cell
from restorelcc.base.layout import Layout
from restorelcc.pipeline.running import stage_running
with stage_running(Layout(Path(sys.argv[1])), "prune", Cell("tiny", "wanda-0.5")):
    print("running", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(folder: Path, seconds: float = 60, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_same_stage_waits_and_says_for_whom(tmp_path: Path) -> None:
    first = hold(tmp_path)
    assert first.stdout and first.stdout.readline() == "running\n"
    lock = tmp_path / ".work/locks/prune@tiny-wanda-0.5"
    assert lock_owner(lock) == str(first.pid)
    second = hold(tmp_path, 0)
    assert second.stderr
    assert second.stderr.readline() == f"restorelcc: prune@tiny-wanda-0.5 is running as process {first.pid}: waiting\n"
    first.kill()
    first.communicate()
    assert second.communicate(timeout=30)[0] == "running\n"
    assert lock_owner(lock) is None


def test_a_stage_ends_with_the_dvc_that_started_it(tmp_path: Path) -> None:
    """kill -9 of the parent, through the shell that DVC puts between."""
    script = tmp_path / "hold.py"
    script.write_text(HOLD)
    shell = f"{sys.executable} {script} {tmp_path} 60"
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run(['/bin/bash', '--norc', '-c', {shell!r}])"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "DVC_STAGE": "prune@tiny-wanda-0.5"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    lock = tmp_path / ".work/locks/prune@tiny-wanda-0.5"
    pid = int(str(wait_for(lambda: lock.exists() and lock.read_text(), "the stage")))
    assert alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not alive(pid), "the stage to end", 30)


def test_a_stage_started_by_hand_outlives_its_shell(tmp_path: Path) -> None:
    """`nohup restorelcc prune &` goes on when the shell is closed."""
    process = hold(tmp_path, 0.2)
    assert process.communicate(timeout=60)[0] == "running\n"
    assert process.returncode == 0


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=T", "-c", "user.email=t@localhost")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize("broken", ["", "schema: '2.0'\nstages:\n  corpus@tiny:\n    cmd: 'cut", "schema: '2.0'\n"])
def test_a_broken_lock_file_gives_way_to_the_committed_one(tmp_path: Path, broken: str) -> None:
    whole = "schema: '2.0'\nstages:\n  corpus@tiny:\n    cmd: x\n"
    git(tmp_path, "init")
    assert heal(tmp_path) is None
    lock = tmp_path / "dvc.lock"
    lock.write_text(broken)
    assert "has been removed" in str(heal(tmp_path))
    assert not lock.exists()
    lock.write_text(whole)
    assert heal(tmp_path) is None
    git(tmp_path, "add", "dvc.lock")
    git(tmp_path, "commit", "-m", "x")
    lock.write_text(broken)
    assert "the committed one is restored" in str(heal(tmp_path))
    assert lock.read_text() == whole
    assert (tmp_path / ".work/dvc.lock.broken").read_text() == broken


def test_entries_are_merged_by_stage_name(tmp_path: Path) -> None:
    merge(tmp_path, {"a": {"cmd": "1"}, "b": {"cmd": "1"}})
    merge(tmp_path, {"b": {"cmd": "2"}, "c": {"cmd": "2"}})
    assert read_lock(tmp_path) == {"a": {"cmd": "1"}, "b": {"cmd": "2"}, "c": {"cmd": "2"}}
    (tmp_path / "dvc.lock").write_text("")
    with pytest.raises(BadInput, match=r"dvc\.lock is broken"):
        merge(tmp_path, {})


def test_versions_are_those_installed_and_a_stage_refuses_others(tmp_path: Path) -> None:
    check_versions(tmp_path)  # no folder, nothing to check
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / "numerics").write_text("numpy==0.1\nno-such-package==1.0\n")
    (tmp_path / FOLDER / "report").write_text(f"jinja2=={installed('jinja2')}\n")
    assert differences(tmp_path) == {"numpy": ("0.1", installed("numpy"))}
    with pytest.raises(BadInput, match=r"numpy .* where versions/ has 0\.1: run `restorelcc versions`"):
        check_versions(tmp_path)
    assert write_versions(tmp_path) == [f"{FOLDER}: numpy 0.1 -> {installed('numpy')}"]
    check_versions(tmp_path)
    numerics = {"no-such-package": "1.0", "numpy": installed("numpy")}
    assert read_groups(tmp_path) == {"numerics": numerics, "report": {"jinja2": installed("jinja2")}}
    file = tmp_path / FOLDER / "numerics"
    stamp = file.stat().st_mtime_ns
    assert write_versions(tmp_path) == []
    write_version(tmp_path, "jinja2", "99.0")
    assert file.stat().st_mtime_ns == stamp, "a group without the package is left alone"
    file.write_text("numpy\n")
    with pytest.raises(BadInput, match=r"numerics must hold lines package==version: .*`git checkout versions`"):
        check_versions(tmp_path)


@pytest.mark.parametrize("older", ["numerics", "report"])
def test_a_package_has_its_installed_version_in_every_group(tmp_path: Path, older: str) -> None:
    """As after a merge of which one file was taken."""
    (tmp_path / FOLDER).mkdir()
    for group in ("numerics", "report"):
        version = "0.1" if group == older else installed("pyarrow")
        (tmp_path / FOLDER / group).write_text(f"pyarrow=={version}\n")
    with pytest.raises(BadInput, match=r"pyarrow .* where versions/ has 0\.1: run `restorelcc versions`"):
        check_versions(tmp_path)
    assert write_versions(tmp_path) == [f"{FOLDER}: pyarrow 0.1 -> {installed('pyarrow')}"]
    assert read_groups(tmp_path) == {group: {"pyarrow": installed("pyarrow")} for group in ("numerics", "report")}


def test_a_lock_is_free_when_its_owner_is_gone(tmp_path: Path) -> None:
    with held_lock(tmp_path / "x"):
        assert lock_owner(tmp_path / "x") == str(os.getpid())
    assert lock_owner(tmp_path / "x") is None
