"""A workspace after a crash, or beside another run: what DVC's own files say of it, and what of that is mended.

`dvc.lock` has the results, `.dvc/tmp/rwlock` who reads or writes what; whoever looks at the project holds
`.dvc/tmp/lock`. DVC writes the first two in place, so a kill leaves them empty or cut off. An entry of a killed process
blocks for ever once another process has its number. All is read without DVC, whose import takes longer than the rest.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from filelock import lock_descriptor

from restorelcc.base.errors import StageFailed
from restorelcc.base.layout import Layout
from restorelcc.base.processes import RWLOCK, is_running
from restorelcc.base.progress import notice
from restorelcc.pipeline.lockfile import FILE, heal, read_lock
from restorelcc.pipeline.running import held_lock, lock_owner

_PATIENCE_SECONDS = 30.0
_FLOW = "flow-"  # the names of their lock files begin so
_YOUNG_SECONDS = 60.0  # a lock file that is younger may not be locked yet


class Run(NamedTuple):
    """A process that works here, as DVC notes it."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})"


def mend(root: Path) -> list[str]:
    """Mend what a killed process left of DVC's files; a sentence for each. Raises StageFailed where one is held."""
    if not (root / ".dvc").is_dir():
        return []
    done = [_mend_rwlock(root)] if _rwlock_fault(root) else []
    if read_lock(root) is None:
        with dvc_lock(root):
            done.append(heal(root))
    return [sentence for sentence in done if sentence]


def faults(root: Path) -> list[str]:
    """What `mend` would mend, a sentence for each."""
    broken = [f"{FILE} is empty or cut off"] if read_lock(root) is None else []
    return [*filter(None, [_rwlock_fault(root)]), *broken]


def other_runs(root: Path, own: Path | None = None) -> list[Run]:
    """Living processes, other than this one, that read or write artifacts here; nor the one that writes `own`: of a
    stage, the DVC that started it is told by an output."""
    noted = _rwlock(root) or {}
    mine = {_run(entry) for name, entry in noted.get("write", {}).items() if own and _same_path(name, own)}
    owners = dict.fromkeys(_owners(noted))
    return [run for run in owners if run.pid != os.getpid() and run not in mine and is_running(*run)]


def _same_path(name: str, path: Path) -> bool:
    return Path(name).resolve() == path.resolve()


def run_lock(root: Path, name: str = "run") -> Path:
    """The lock file of a whole run here: of `restorelcc run`, of which one at a time works, or of a flow."""
    return Layout(root).work / "locks" / name


@contextmanager
def flow_running(root: Path) -> Iterator[None]:
    """Let others see that a flow works here. Flows work beside one another, so that each has a lock of its own. Those
    that killed flows have left go."""
    for left in run_lock(root).parent.glob(f"{_FLOW}*"):
        with suppress(FileNotFoundError):
            if lock_owner(left) is None and time.time() - left.stat().st_mtime > _YOUNG_SECONDS:
                left.unlink()
    path = run_lock(root, f"{_FLOW}{uuid4().hex}")
    with held_lock(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def what_holds(lock: Path) -> str:
    """What works where a file of .work/locks is locked: a whole run, or a stage by its name."""
    return "a flow" if lock.name.startswith(_FLOW) else "restorelcc run" if lock.name == "run" else lock.name


def at_work(root: Path) -> list[Run]:
    """`other_runs`, and whole runs of other processes, which are at work between two of their stages too."""
    found = other_runs(root)
    for path in (run_lock(root), *run_lock(root).parent.glob(f"{_FLOW}*")):
        with suppress(FileNotFoundError):  # it has ended
            if (owner := lock_owner(path)) not in (None, "unknown", str(os.getpid())):
                found.append(Run(int(owner), what_holds(path)))
    return found


def wait_for_others(root: Path, title: str) -> None:
    """Wait until no other process works here; says under `title` which one it waits for."""
    runs = at_work(root)
    notice(title, f"{', '.join(map(str, runs)) or 'another run'} is at work in {root}: waiting")
    while runs and at_work(root):
        time.sleep(0.5)
    time.sleep(0.1)


@contextmanager
def dvc_lock(root: Path, patience: float | None = None) -> Iterator[None]:
    """Hold the lock that every dvc command takes. Raises StageFailed, with its owner, after so many seconds, by default
    half a minute."""
    path = root / ".dvc" / "tmp" / "lock"
    with _held(path, patience):
        yield


@contextmanager
def _held(path: Path, patience: float | None = None) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + (_PATIENCE_SECONDS if patience is None else patience)
    with path.open("a+") as file:
        while not lock_descriptor(file.fileno(), blocking=False):
            if time.monotonic() > deadline:
                owner = path.read_text(encoding="utf-8").strip() or "unknown"
                raise StageFailed(f"process {owner} holds DVC's lock {path}: wait until it has ended, or end it")
            time.sleep(0.1)
        yield


def _rwlock(root: Path) -> dict[str, Any] | None:
    """DVC's note of who reads or writes what; empty without one, None where the file is broken."""
    try:
        content = json.loads((root / RWLOCK).read_text(encoding="utf-8"))
        list(_owners(content))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return content


def _owners(content: dict[str, Any]) -> Iterator[Run]:
    yield from map(_run, content.get("write", {}).values())
    for entries in content.get("read", {}).values():
        yield from map(_run, entries)


def _run(entry: dict[str, Any]) -> Run:
    return Run(int(entry["pid"]), str(entry["cmd"]))


def _rwlock_fault(root: Path) -> str | None:
    content = _rwlock(root)
    if content is None:
        return f"{RWLOCK} is empty or cut off, which stops every dvc command"
    if gone := _gone(content):
        return f"{RWLOCK} names {', '.join(map(str, gone))}, which is no more"
    return None


def _gone(content: dict[str, Any]) -> list[Run]:
    return [run for run in dict.fromkeys(_owners(content)) if not is_running(*run)]


def _mend_rwlock(root: Path) -> str | None:
    path = root / RWLOCK
    with _held(path.with_name(f"{path.name}.lock")):  # as DVC does while it edits the file
        content = _rwlock(root)
        if content is None:
            path.unlink(missing_ok=True)
            return f"{RWLOCK} was empty or cut off by a kill, and is gone"
        gone = set(_gone(content))
        if not gone:
            return None
        kept: dict[str, Any] = {"write": {}, "read": {}}
        for name, entry in content.get("write", {}).items():
            if _run(entry) not in gone:
                kept["write"][name] = entry
        for name, entries in content.get("read", {}).items():
            left = [entry for entry in entries if _run(entry) not in gone]
            if left:
                kept["read"][name] = left
        scratch = path.with_name(f"{path.name}.{os.getpid()}")
        scratch.write_text(json.dumps(kept), encoding="utf-8")
        scratch.replace(path)
        return f"{RWLOCK} named {', '.join(map(str, sorted(gone)))}, which is no more: its entries are gone"
