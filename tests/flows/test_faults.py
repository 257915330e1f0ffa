"""Crashes, full disks, remotes that do not answer: nothing is lost, and nobody has to mend anything by hand.

`make faults` runs all of it and prints the table; the short form is a part of `make test`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from restorelcc.base.cell import Cell
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.layout import Layout
from restorelcc.base.processes import is_running
from restorelcc.base.publish import SCRATCH, check_writable, published, scratch_home
from restorelcc.cli.share import push
from restorelcc.pipeline.lockfile import heal, read_lock
from restorelcc.pipeline.remotes import add_remote, altered_objects
from restorelcc.pipeline.running import stage_running
from restorelcc.pipeline.workspace import faults, mend, other_runs
from tests.dag import ROOT
from tests.flows.faults import Table, Victim, children, ended, kill_at, kills, struck, writes
from tests.flows.light import LightProject
from tests.flows.servers import Cutter, s3_server, wait_for

GRID = {"pruning": ["wanda-0.5"], "head_ratio": [0.25]}
SEED = 20
FLOW = (sys.executable, "-m", "flows.restore")


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    return Victim(LightProject(tmp_path_factory.mktemp("faults") / "project", GRID))


def show(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    """Print the table; then every row must be without a loss."""
    with capsys.disabled():
        print(f"\n{table.text()}")
    for row in table.rows:
        assert row.times > 0, row
        assert (row.identical, row.hand, row.zero) == (row.times, 0, 0), row


def test_a_dozen_faults(victim: Victim, capsys: pytest.CaptureFixture[str]) -> None:
    chance, table = random.Random(SEED), Table()
    kills(victim, table, "dvc", 3, chance)
    kills(victim, table, "process group", 3, chance)
    writes(victim, table, "kill", [2, 5], "rwlock")
    writes(victim, table, "full", [2, 60], "")
    show(table, capsys)


@pytest.mark.slow
def test_every_fault(victim: Victim, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chance, table = random.Random(SEED), Table()
    for whom, times in (("dvc", 18), ("stage", 18), ("process group", 12), ("Ctrl-C", 6)):
        kills(victim, table, whom, times, chance)
    writes(victim, table, "kill", [chance.randint(1, 24) for _ in range(8)], "rwlock")
    writes(victim, table, "kill", [1, 2, 4, 8], "dvc.lock")
    writes(victim, table, "full", [*range(1, 12, 2), 20, 40, 80, 120])
    writes(victim, table, "full", [1, 3], "dvc.lock")
    flow_kills(victim, table, 2)
    two_at_once(victim, table)
    clock_jumps(victim, table)
    scratch_elsewhere(victim, table, tmp_path)
    full_tmpfs(victim, table, tmp_path)
    show(table, capsys)


def flow_kills(victim: Victim, table: Table, times: int) -> None:
    """kill -9 of a flow in the middle; its stages end with it."""
    row = table.row("kill -9: flow")

    def strike() -> bool:
        before = len(victim.project.executed())
        flow = victim.project.start(*FLOW, STANDIN_SECONDS="0.3", STANDIN_INPUTS=victim.environment["STANDIN_INPUTS"])
        wait_for(lambda: flow.poll() is not None or len(victim.project.executed()) > before + 2, "some stages")
        below = children(flow.pid)
        flow.send_signal(signal.SIGKILL)
        flow.communicate()
        wait_for(lambda: not any(map(psutil.pid_exists, below)), "what the flow started to end", 60)
        return True

    struck(victim, row, [strike] * times, 2)


def two_at_once(victim: Victim, table: Table) -> None:
    """The second waits, or ends and names the process in its way; either way one rerun has it all."""
    row = table.row("two dvc at once")

    def strike() -> bool:
        start = victim.output.stat().st_size
        both = [victim.start("--wait-for-lock", "repro") for _ in range(2)]
        codes = [ended(number) for number in both]
        said = victim.output.read_text()[start:]
        assert 0 in codes and (codes == [0, 0] or f"(PID {both[codes.index(0)]})" in said), (codes, said)
        return True

    struck(victim, row, [strike] * 2, 1)


def clock_jumps(victim: Victim, table: Table) -> None:
    """Every file is from 1970, or from 2100; half of them, and cut off in the middle besides."""
    row = table.row("clock jumps")

    def strike(when: int, cut: bool) -> bool:
        if cut:
            kill_at(victim, "dvc", 1.5)
        for number, path in enumerate(sorted((victim.project.folder / "data").rglob("*"))):
            if number % 2 or not cut:
                os.utime(path, (when, when), follow_symlinks=False)
        return True

    struck(victim, row, [lambda: strike(0, True), lambda: strike(4102444800, True), lambda: strike(1, False)], 3)


def scratch_elsewhere(victim: Victim, table: Table, tmp_path: Path) -> None:
    """TMPDIR is full (/dev/full is no folder: Python takes the next one), and data/ a mount."""
    row = table.row("TMPDIR cannot be written")
    struck(victim, row, [lambda: victim.run(TMPDIR="/dev/full") == 0])
    if not can_mount(tmp_path):
        return
    row, data = table.row("data/ is a mount"), victim.project.folder / "data"

    def strike() -> bool:
        hit = kill_at(victim, "dvc", 1.5)
        victim.rerun(row)
        return hit

    data.mkdir(exist_ok=True)
    victim.forget()
    data.mkdir()
    with mounted(data, "-t", "tmpfs", "tmpfs"):
        row.times += strike()


def full_tmpfs(victim: Victim, table: Table, tmp_path: Path) -> None:
    """A true small disk under .dvc, where the cache and DVC's own files are; only where one may be mounted."""
    dot, free = victim.project.folder / ".dvc", (0, 16, 64, 160)
    row = table.row("disk full: tmpfs under .dvc")
    config = (dot / "config").read_bytes()

    def strike(kilobytes: int) -> bool:
        with mounted(dot, "-t", "tmpfs", "-o", f"size={kilobytes + 64}k", "tmpfs"):
            (dot / "config").write_bytes(config)
            (dot / "tmp").mkdir()
            row.zero += victim.run() == 0 and victim.project.artifacts() != victim.expected
        return True

    if can_mount(tmp_path):
        struck(victim, row, [lambda size=size: strike(size) for size in free], 2)
    else:
        table.rows.remove(row)


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    subprocess.run(["mount", *options, str(place)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, capture_output=True)


def can_mount(tmp_path: Path) -> bool:
    probe = tmp_path / "probe"
    probe.mkdir(exist_ok=True)
    try:
        with mounted(probe, "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


# --- one by one, in this process


def test_a_stale_rwlock_is_mended_and_a_living_one_stays(tmp_path: Path) -> None:
    lock = tmp_path / ".dvc/tmp/rwlock"
    lock.parent.mkdir(parents=True)
    for broken in ("", '{"write": {"a"', "[]", '{"write": {"a": {"pid": "x"}}}', '{"read": {"a": 3}}'):
        lock.write_text(broken)
        assert len(faults(tmp_path)) == 1
        (sentence,) = mend(tmp_path)
        assert "was empty or cut off by a kill, and is gone" in sentence and not lock.exists()
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()", "repro"], stdin=subprocess.PIPE
    ) as other:
        gone, here = '{"pid": 4194304, "cmd": "dvc repro"}', f'{{"pid": {other.pid}, "cmd": "-c repro"}}'
        again = f'{{"pid": {other.pid}, "cmd": "/usr/bin/dvc exp run"}}'  # its number is another process's now
        lock.write_text(f'{{"write": {{"x": {gone}, "y": {here}, "z": {again}}}, "read": {{"w": [{here}, {gone}]}}}}')
        (sentence,) = mend(tmp_path)
        assert "process 4194304 (dvc repro)" in sentence and "(/usr/bin/dvc exp run)" in sentence
        assert lock.read_text() == f'{{"write": {{"y": {here}}}, "read": {{"w": [{here}]}}}}'
        assert [str(run) for run in other_runs(tmp_path)] == [f"process {other.pid} (-c repro)"]
        assert mend(tmp_path) == faults(tmp_path) == []
        other.kill()
    assert other_runs(tmp_path) == []


@pytest.mark.parametrize(
    ("line", "command", "same"),
    [
        ("/v/bin/python /v/bin/dvc repro", "/v/bin/dvc repro", True),
        ("python -m dvc --wait-for-lock repro", "/v/site-packages/dvc/__main__.py --wait-for-lock repro", True),
        ("python -m flows.restore", "/project/flows/restore.py", True),
        ("/v/bin/python /v/bin/dvc repro", "/v/bin/dvc exp run", False),
        ("/usr/sbin/sshd -D", "/v/bin/dvc repro", False),
    ],
)
def test_a_number_that_was_given_again_is_another_process(line: str, command: str, same: bool) -> None:
    from restorelcc.base.processes import _same_command

    assert _same_command(line, command) is same
    assert not is_running(4194304, command)


def test_a_stage_whose_dvc_died_before_it_could_tell_ends_before_its_imports(tmp_path: Path) -> None:
    lock = tmp_path / ".dvc/tmp/rwlock"
    lock.parent.mkdir(parents=True)
    lock.write_text('{"write": {"x": {"pid": 4194304, "cmd": "dvc repro"}}, "read": {}}')
    command = [sys.executable, "-X", "importtime", "-m", "restorelcc", "extract", "--model", "tiny"]
    variables = os.environ | {"DVC_STAGE": "extract@tiny", "DVC_ROOT": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "the process that started the stage is gone" in done.stderr
    assert "typer" not in done.stderr, "nothing heavy was imported"

    experiment = tmp_path / ".dvc/tmp/exps/one"  # DVC_ROOT is the project's nevertheless
    (experiment / ".dvc").mkdir(parents=True)
    done = subprocess.run(command, cwd=experiment, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--pruning" in done.stderr, "it goes on to its arguments"


def test_scratch_is_where_its_destination_is(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "project")
    near = layout.data / "tiny/one.json"
    with published(layout, near) as (path,):
        assert path.parent.parent == layout.work
        path.write_text("1")
    own = tmp_path.stat().st_dev
    others = [
        each for each in (Path("/dev/shm"), Path("/var/tmp"), ROOT) if each.is_dir() and each.stat().st_dev != own
    ]
    if not others:
        pytest.skip("no other file system at /dev/shm, /var/tmp or the repository")
    elsewhere = others[0] / f".restorelcc-scratch-{os.getpid()}"
    elsewhere.mkdir()
    try:
        (layout.data / "linked").symlink_to(elsewhere)
        far = layout.data / "linked/deep/two.json"
        with published(layout, near, far) as (one, two):
            assert two.parent.parent == layout.data / "linked" / SCRATCH
            one.write_text("3")
            two.write_text("2")
        assert (near.read_text(), far.read_text()) == ("3", "2")
        assert not list((elsewhere / SCRATCH).iterdir())
    finally:
        shutil.rmtree(elsewhere)


def test_a_link_in_a_repository_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "project")
    (layout.root / ".git").mkdir(parents=True)
    layout.data.symlink_to(tmp_path)
    with pytest.raises(BadInput, match="is a link, and DVC refuses results"):
        check_writable(layout)


def test_a_mount_of_the_same_disk_and_one_for_reading(tmp_path: Path) -> None:
    """A bind mount, as containers make, has the device number of its disk, and no name can be moved to it."""
    if not can_mount(tmp_path):
        pytest.skip("nothing may be mounted here")
    layout, disk = Layout(tmp_path / "project"), tmp_path / "disk"
    layout.data.mkdir(parents=True)
    disk.mkdir()
    with mounted(layout.data, "--bind", str(disk)):
        assert scratch_home(layout, layout.data / "x.json") == layout.data / SCRATCH
        with published(layout, layout.data / "x.json") as (path,):
            path.write_text("1")
        subprocess.run(["mount", "-o", "remount,bind,ro", str(layout.data)], check=True)
        with (
            pytest.raises(BadInput, match="mounted read-only: mount it for writing"),
            stage_running(layout, "extract", Cell("tiny")),
        ):
            raise AssertionError("refused before anything is computed")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.parametrize("server", ["refuses", "hangs"])
def test_a_remote_that_does_not_answer_is_not_stored(
    victim: Victim, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    monkeypatch.setenv("RESTORELCC_REMOTE_SECONDS", "1.5")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    folder, began = victim.project.folder, time.monotonic()
    before = (folder / ".dvc/config").read_bytes()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        if server == "hangs":
            listener.listen()
        sentence = "did not answer within 1.5 s" if server == "hangs" else "cannot be used .*refused"
        with pytest.raises(BadInput, match=sentence):
            add_remote(folder, "share", "s3://team/results", f"http://127.0.0.1:{port}")
    assert (folder / ".dvc/config").read_bytes() == before
    assert time.monotonic() - began < 60
    monkeypatch.setenv("RESTORELCC_REMOTE_SECONDS", "soon")
    with pytest.raises(BadInput, match="give a number of seconds"):
        add_remote(folder, "share", str(folder.with_name("remote")), None)


def test_an_altered_object_is_found_before_it_is_pushed(victim: Victim, tmp_path: Path) -> None:
    project = victim.project.copy(tmp_path / "copy")
    add_remote(project.folder, "share", str(tmp_path / "remote"), None)
    assert not [path for path in (tmp_path / "remote").rglob("*") if path.is_file()], "the probe is gone"
    cache = project.folder / ".dvc/cache/files/md5"
    cached = next(path for path in sorted(cache.glob("??/*")) if path.suffix != ".dir")
    cached.chmod(0o644)
    cached.write_bytes(cached.read_bytes() + b"?")
    with pytest.raises(StageFailed, match=r"was altered on this disk, and a push would spread it \(1 such files\)"):
        push(root=project.folder)
    assert not [path for path in (tmp_path / "remote").rglob("*") if path.is_file()]
    assert altered_objects(cache) == [cached]


@pytest.mark.slow
def test_a_remote_that_dies_in_a_push(victim: Victim, tmp_path: Path) -> None:
    project = victim.project.copy(tmp_path / "copy")
    with s3_server(tmp_path) as keys:
        port = int(keys.pop("ENDPOINT").rpartition(":")[2])
        cutter = Cutter(port, after=20_000)
        share = ("share", "s3://team/results", "--endpoint", f"http://127.0.0.1:{cutter.port}")
        assert project.restorelcc(*share, **keys).code == 0
        began = time.monotonic()
        assert project.restorelcc("push", **keys, RESTORELCC_REMOTE_SECONDS="30").code in (1, 2)
        assert time.monotonic() - began < 120
        cutter.mend()
        done = project.restorelcc("push", **keys)
        assert done.code == 0, done.text
        cutter.close()


@pytest.mark.slow
def test_two_first_flows_at_once(victim: Victim, tmp_path: Path) -> None:
    copy = victim.project.copy(tmp_path / "copy")
    shutil.rmtree(copy.folder / ".work", ignore_errors=True)
    flows = [copy.start(*FLOW) for _ in range(2)]
    for flow in flows:
        text, _ = flow.communicate(timeout=600)
        assert flow.returncode == 0, text[-2000:]


def test_what_killed_exports_left_goes_with_the_next(tmp_path: Path) -> None:
    from restorelcc.release.folders import published_folder

    left = tmp_path / ".other.unfinished-12345678"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"x")
    with published_folder(tmp_path / "out") as folder:
        assert not left.exists()
        with published_folder(tmp_path / "second") as second:
            assert folder.is_dir(), "its process is alive"
            (second / "config.json").write_text("{}")
        (folder / "config.json").write_text("{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "second"]


def test_a_lock_file_cut_at_any_byte_is_whole_or_mended(victim: Victim, tmp_path: Path) -> None:
    content = (victim.project.folder / "dvc.lock").read_bytes()
    (tmp_path / ".dvc").mkdir()
    chance = random.Random(SEED)
    for length in [0, 1, 8, 14, *(chance.randrange(len(content)) for _ in range(40))]:
        (tmp_path / "dvc.lock").write_bytes(content[:length])
        mend(tmp_path)
        assert read_lock(tmp_path) is not None
        assert faults(tmp_path) == []


def test_a_broken_lock_file_is_mended_where_there_is_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where `restorelcc restore` was killed, whose project has none."""
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages:\n  dense@")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert heal(tmp_path) == "dvc.lock was broken and has been removed; results come from the run-cache"
    assert not (tmp_path / "dvc.lock").exists()


def test_dvc_lock_held_by_another_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from restorelcc.pipeline import workspace

    monkeypatch.setattr(workspace, "_PATIENCE_SECONDS", 0.2)
    (tmp_path / "dvc.lock").write_text("")
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    lock = tmp_path / ".dvc/tmp/lock"
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with workspace.dvc_lock(tmp_path):
            lock.write_text(" 77\n")
            inside.set()
            leave.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait(10)
    with pytest.raises(StageFailed, match="process 77 holds DVC's lock"):
        mend(tmp_path)
    leave.set()
    holder.join()
    assert "has been removed" in mend(tmp_path)[0]
