"""Processes: a stage that runs the code which DVC records and ends with the DVC that started it, and whether a process
that a file names still runs.

Imports nothing heavy: it is what a command does first.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import threading
from functools import cache
from pathlib import Path
from types import FrameType

from restorelcc.base.errors import StageFailed, Terminated

_PR_SET_PDEATHSIG = 1
_PACKAGE = Path(__file__).parents[1]
RWLOCK = Path(".dvc") / "tmp" / "rwlock"  # which process reads or writes what, as DVC notes it


def started_by_dvc() -> bool:
    """Whether this process is a stage that DVC runs."""
    return "DVC_STAGE" in os.environ


def run_code_that_dvc_records() -> None:
    """Started by DVC in a folder with other code, on which the stage depends: begin again with that, and do not return.

    The command of an environment imports the clone that was installed there, also in another one: that of `dvc exp run
    --temp`, or a second worktree. Raises StageFailed where Python imports this code nevertheless.
    """
    folder = Path.cwd()
    own = folder / _PACKAGE.name
    if not (started_by_dvc() and (own / "__main__.py").is_file()) or own.samefile(_PACKAGE):
        return
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if path[0] == str(folder):
        raise StageFailed(
            f"DVC records the code in {own}, and Python imports that of {_PACKAGE} although PYTHONPATH begins with "
            f"{folder}: run it in an environment that does not put another folder before that"
        )
    again = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, path)])}
    os.execve(sys.executable, [sys.executable, "-P", "-m", _PACKAGE.name, *sys.argv[1:]], again)


def end_as_interrupted() -> None:
    """From now on SIGTERM ends this process as Ctrl-C does: it cleans up, says a sentence, and exits with 143."""
    signal.signal(signal.SIGTERM, _terminated)


def _terminated(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending: a second one would only break into that
    raise Terminated


def end_with_parent() -> None:
    """Started by DVC: have SIGTERM sent to this process when DVC dies (Linux; elsewhere the lock alone protects).

    The kernel tells of the parent. Where that is a shell (dash stays beside the command that it runs; `sh` is DVC's
    shell where SHELL is not set, as under cron), a thread waits for DVC's end too.
    Raises StageFailed where DVC died before this was set.
    """
    if sys.platform != "linux" or not started_by_dvc():
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    dvc = _dvc_above(parent)
    if dvc not in (None, parent):
        _end_with(dvc)
    if os.getppid() != parent or _dvc_is_gone():
        raise StageFailed("the process that started the stage is gone")


def _dvc_above(pid: int) -> int | None:
    """The nearest of a process and its ancestors that does not run this stage: DVC. None where that is hidden."""
    stage = os.fsencode(f"DVC_STAGE={os.environ['DVC_STAGE']}")
    while pid > 1:
        process = Path(f"/proc/{pid}")
        try:
            if stage not in (process / "environ").read_bytes().split(b"\0"):
                return pid
            pid = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return None
    return None


@cache
def _end_with(pid: int) -> None:
    """Have a thread send SIGTERM to this process when another ends."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        raise StageFailed("the process that started the stage is gone") from None
    except OSError:  # a kernel before 5.3
        return
    threading.Thread(target=_wait_and_end, args=(handle,), daemon=True).start()


def _wait_and_end(handle: int) -> None:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.poll()
    os.kill(os.getpid(), signal.SIGTERM)


def _dvc_is_gone() -> bool:
    """Whether no process lives that DVC's own lock file has as a writer: the one that started this stage is there."""
    try:
        written = json.loads((_dvc_root() / RWLOCK).read_bytes())["write"]
        owners = {int(owner["pid"]) for owner in written.values()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return False  # nothing to tell by
    return bool(owners) and not any(Path(f"/proc/{owner}").exists() for owner in owners)


def _dvc_root() -> Path:
    """The folder that DVC works in: that of an experiment has its own, and $DVC_ROOT names the project's."""
    folder = Path.cwd()
    return next((each for each in (folder, *folder.parents) if (each / ".dvc").is_dir()), folder)


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
