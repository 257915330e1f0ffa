"""Processes: a stage that ends with the DVC that started it, and whether a process that a file names still runs.

Imports nothing heavy: it is what a command does first.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

from restorelcc.base.errors import StageFailed

_PR_SET_PDEATHSIG = 1
RWLOCK = Path(".dvc") / "tmp" / "rwlock"  # which process reads or writes what, as DVC notes it


def started_by_dvc() -> bool:
    """Whether this process is a stage that DVC runs."""
    return "DVC_STAGE" in os.environ


def end_with_parent() -> None:
    """Started by DVC: have the kernel send SIGTERM when DVC dies (Linux; elsewhere the lock alone protects).

    Raises StageFailed where DVC died before this was set.
    """
    if sys.platform != "linux" or not started_by_dvc():
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent or _dvc_is_gone():
        raise StageFailed("the process that started the stage is gone")


def _dvc_is_gone() -> bool:
    """Whether no process lives that DVC's own lock file has as a writer: the one that started this stage is there."""
    try:
        written = json.loads((Path(os.environ["DVC_ROOT"]) / RWLOCK).read_bytes())["write"]
        owners = {int(owner["pid"]) for owner in written.values()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return False  # nothing to tell by
    return bool(owners) and not any(Path(f"/proc/{owner}").exists() for owner in owners)


def is_running(pid: int, command: str) -> bool:
    """Whether the process that once had this number and ran this command (`sys.argv`, joined by spaces) still lives.

    Numbers are given again: a process that runs something else is another one. One whose command line is hidden from
    us counts as alive.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    return not words or _same_command(" ".join(words), command)


def _same_command(line: str, command: str) -> bool:
    """Whether a command line is one that Python turned into this `sys.argv`: `-m dvc` became the path of a file."""
    words = command.split(" ")
    for length in range(1, len(words) + 1):  # of a program whose path has spaces
        program, rest = Path(" ".join(words[:length])), " ".join(words[length:])
        name = program.parent.name if program.name == "__main__.py" else program.stem
        if (length == 1 or program.is_file()) and name in line and line.endswith(rest):
            return True
    return False
