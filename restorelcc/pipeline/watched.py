"""Commands that talk to a remote, in processes of their own: watched, and ended where the remote says no more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from restorelcc.base.documents import read_json, write_json
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.pipeline.remotes import FOR_THE_GROUP, check_remote, is_for_a_group, patience
from restorelcc.pipeline.run_cache import Found

_BUSY_SECONDS = 0.02  # of computing, in half the patience; a command that waits takes none


def dvc(root: Path, *arguments: str, remote: str | None = None) -> int:
    """Run a dvc command, its output shown as it comes; its exit code.

    `remote`: the one that it talks to. It is asked now and then whether it still answers, and the command whether it
    gets on. Raises BadInput when one of them does not, after the command was ended.
    """
    writes = remote is not None and arguments[0] == "push" and is_for_a_group(root, remote)
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]
    return _watched(root, command, remote, umask=FOR_THE_GROUP if writes else -1)


def restored(root: Path, remote: str, only: set[str] | None = None, *, fetch: bool = False) -> Found:
    """`run_cache.restore_from_cache`, watched as a dvc command is; fetch: the run-cache's records as well.

    Raises BadInput where the remote says no more, and StageFailed where it fails otherwise.
    """
    with tempfile.TemporaryDirectory() as scratch:
        request, result = Path(scratch) / "request.json", Path(scratch) / "result.json"
        names = None if only is None else sorted(only)
        write_json(request, {"root": str(root.resolve()), "remote": remote, "only": names, "fetch": fetch})
        # -P: of the project's own restorelcc, which may be an older one, nothing is imported.
        command = [sys.executable, "-P", "-m", "restorelcc.pipeline.run_cache", str(request), str(result)]
        if _watched(root, command, remote):
            raise StageFailed("results could not be brought back from the remote, see above: run it again")
        return Found(**read_json(result))


def _watched(root: Path, command: list[str], remote: str | None, umask: int = -1) -> int:
    from dvc.repo import Repo

    # The S3 library tries five times, and for a minute each.
    environment = {"AWS_MAX_ATTEMPTS": "2"} | os.environ
    process = subprocess.Popen(command, cwd=root, stdin=subprocess.DEVNULL, env=environment, umask=umask)
    try:
        still, before = 0, _traces(process.pid)
        while remote is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=patience() / 2)
                break
            now = _traces(process.pid)
            still = still + 1 if _is_idle(before, now) and _holds_lock(root, process.pid) else 0
            before = now
            if still >= 2:
                raise BadInput(
                    f"remote {remote!r} took the connection, and nothing was sent or received for {patience():g} s: "
                    "check the network and the server, then run again, what has arrived is not sent again; "
                    "RESTORELCC_REMOTE_SECONDS sets how long to wait"
                )
            with Repo(str(root.resolve())) as repo:
                check_remote(repo, remote, patience() / 2)
        return process.wait()
    except BadInput:
        # By SIGTERM, of which libraries say nothing; interrupted, those that wait for a server print a traceback.
        end(process, first=signal.SIGTERM)
        raise
    finally:
        end(process)


def _traces(number: int) -> tuple[float, list[str]] | None:
    """(seconds of computing, what moves when a process gets on) of a process; None where it has ended, or is no Linux.

    Libraries of remotes wait for minutes, or for ever, for a server that keeps the connection and says nothing. What
    moves else is the bytes read from files and written to them, and those that wait in the process's connections: a
    large file goes out of memory, for minutes on a slow line.
    """
    import psutil

    home = Path(f"/proc/{number}")
    try:
        times = psutil.Process(number).cpu_times()
        moved = [line for line in (home / "io").read_text().splitlines() if line.startswith(("rchar", "wchar"))]
        held = {str(each.readlink()) for each in (home / "fd").iterdir()}
        for table in ("net/tcp", "net/tcp6"):
            rows = (line.split() for line in (home / table).read_text().splitlines()[1:])
            moved += [f"{row[9]} {row[4]}" for row in rows if f"socket:[{row[9]}]" in held]  # inode, bytes that wait
    except (psutil.Error, OSError, IndexError):
        return None
    return times.user + times.system, moved


def _is_idle(before: tuple[float, list[str]] | None, now: tuple[float, list[str]] | None) -> bool:
    return before is not None and now is not None and now[0] - before[0] < _BUSY_SECONDS and now[1] == before[1]


def _holds_lock(root: Path, number: int) -> bool:
    """Whether a dvc command is at work; otherwise it waits for the one that is."""
    try:
        return (root / ".dvc" / "tmp" / "lock").read_text().strip() == str(number)
    except (OSError, ValueError):
        return False


def end(process: subprocess.Popen[Any], first: signal.Signals = signal.SIGINT) -> None:
    """End a process that still runs: as Ctrl-C does, or by another signal, and when that does not help, for good."""
    for number in (first, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=3)
