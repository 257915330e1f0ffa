"""Run one stage with DVC, in a process group that ends with this process, and report how it ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.gates import GPU, visible_gpus
from restorelcc.base.errors import StageFailed
from restorelcc.pipeline.workspace import mend, other_runs

RAN, RESTORED, UNCHANGED = "Ran", "Restored from the cache", "Unchanged"
BAD_INPUT = 2

_TIED = Path(__file__).with_name("tied.py")
_EXIT = re.compile(r"exited with (-?\d+)")
_BUSY = re.compile(r"is busy, it is being blocked by|Unable to acquire lock")
# Worth another try: what a network, a shared device or the kernel did, and not what the stage was given.
_TRANSIENT = re.compile(
    r"Connection ?(?:Error|reset|refused|aborted)|[Tt]imed? ?out|Temporary failure|RemoteDisconnected|IncompleteRead"
    r"|\b(?:429|502|503|504)\b (?:Client|Server|Too|Bad|Service|Gateway)|CUDA out of memory|CUDA error"
)
_GRACE_SECONDS = 10.0
_HOW = re.compile(r"Running stage '|is cached - skipping run")  # DVC's words for what became of a stage
# DVC's advice after every stage; it belongs to a person at a terminal.
_ADVICE = re.compile(r"^(?:To track the changes|To enable auto staging|Use `dvc push`|\s+git add |\s+dvc config core)")


class StageError(Exception):
    """A stage did not succeed. `bad_input`: the user must correct it. `transient`: worth another try."""

    def __init__(self, message: str, *, bad_input: bool = False, transient: bool = False) -> None:
        super().__init__(message)
        self.bad_input = bad_input
        self.transient = transient


@dataclass(frozen=True)
class Command:
    """Everything needed to run one stage; plain values, so that it can be sent to another machine."""

    root: str
    stage: str
    resource: str
    slot: int | None = 0  # None: all of them
    every_gpu: bool = False
    threads: int = 1  # 0: torch's own choice
    share: int | None = None  # what that choice is to be
    run: str = ""  # the run that it belongs to, which may be ended


_running: dict[subprocess.Popen[str], str] = {}  # with the run that each belongs to
_guard = threading.Lock()
_ended: set[str] = set()  # runs


def run_stage(command: Command, say: Callable[[str], None]) -> str:
    """Run `dvc repro -s` for one stage; returns RAN, RESTORED or UNCHANGED. Raises StageError.

    While another process runs the stage or reads its outputs, DVC refuses; then this waits and tries again.
    """
    arguments = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", command.stage]
    pause = 0.5
    while True:
        told: list[str] = []  # what decides the outcome, however much is printed after it

        def heard(line: str, told: list[str] = told) -> None:
            if _HOW.search(line):
                told.append(line)
            say(line)

        code, lines = run_tied(arguments, Path(command.root), heard, _own(command), command.run)
        text = "\n".join(lines)
        if code == 0:
            return _outcome("\n".join(told))
        root = Path(command.root)
        if mended := _mended(root, command.run):  # another run was killed meanwhile
            say("; ".join(mended))
            continue
        if not _BUSY.search(text) or command.run in _ended:
            raise _error(command.stage, code, lines)
        who = ", ".join(map(str, other_runs(root))) or "another run"
        say(f"{command.stage} or one of its inputs is in use by {who}: waiting {pause:g} s")
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


def _mended(root: Path, run: str) -> list[str]:
    try:
        return [] if run in _ended else mend(root)
    except StageFailed as error:
        raise StageError(str(error)) from error


def run_tied(
    arguments: list[str], root: Path, say: Callable[[str], None], more: dict[str, str] | None = None, run: str = ""
) -> tuple[int, list[str]]:
    """Run a command in its own process group; every line of its output goes to `say`. Exit code and last lines.

    Raises StageError where the run that it belongs to has been ended.
    """
    command = [sys.executable, "-I", "-S", str(_TIED), str(os.getpid()), *arguments]
    with _guard:
        raise_if_ending(run)
        process = subprocess.Popen(
            command,
            cwd=root,
            env=stage_environment(root) | (more or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        _running[process] = run
    lines: list[str] = []
    try:
        assert process.stdout
        for line in _throttled(process.stdout):
            lines = [*lines[-79:], line]
            say(line)
        return process.wait(), lines
    finally:
        end_group(process)
        with _guard:
            _running.pop(process, None)


def _throttled(stream: Iterable[str]) -> Iterator[str]:
    """Lines of a stream, ends of progress bars (which overwrite themselves) at most every ten seconds."""
    last = 0.0
    for line in stream:  # universal newlines: a carriage return ends a line too
        text = line.rstrip()
        if _ADVICE.match(text):
            continue
        if re.search(r"\d+/\d+ .*\||\d+%\|", text):  # ours, and those of libraries
            if time.monotonic() - last < 10:
                continue
            last = time.monotonic()
        if text:
            yield text


def stage_environment(root: Path) -> dict[str, str]:
    """This process's environment, with the clone's own code and this interpreter's commands first."""
    first = [os.environ["RESTORELCC_BIN"]] if os.environ.get("RESTORELCC_BIN") else []
    path = [*first, str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    python_path = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": os.pathsep.join(python_path),
        "DVC_NO_ANALYTICS": "1",
        "PYTHONUNBUFFERED": "1",
        "RESTORELCC_PROGRESS": os.environ.get("RESTORELCC_PROGRESS", "1"),  # a line every ten seconds goes to the log
        "RESTORELCC_TABLE": "0",  # the flow prints it last
    }


def _own(command: Command) -> dict[str, str]:
    """Variables of this stage alone: the one GPU that it sees, or the cores that it shares with others."""
    if command.resource != GPU:
        return {} if command.threads or command.share is None else {"OMP_NUM_THREADS": str(command.share)}
    gpus = visible_gpus()
    return {} if command.slot is None or not gpus else {"CUDA_VISIBLE_DEVICES": gpus[command.slot % len(gpus)]}


def _outcome(text: str) -> str:
    if "Running stage '" in text:
        return RAN
    return RESTORED if "is cached - skipping run" in text else UNCHANGED


def _error(stage: str, code: int, lines: list[str]) -> StageError:
    text = "\n".join(lines)
    ended = int(match[1]) if (match := _EXIT.search(text)) else None
    said = [line.partition("restorelcc: ")[2] for line in lines if line.startswith("restorelcc: ")]
    said = said or [line.partition("ERROR: ")[2] for line in lines if line.startswith("ERROR: ")] or lines[-1:]
    message = f"{stage}: {said[-1] if said else f'dvc ended with {code}'}"
    killed = code < 0 or (ended is not None and (ended < 0 or ended > 128))
    return StageError(
        message,
        bad_input=ended == BAD_INPUT,
        transient=ended != BAD_INPUT and (killed or bool(_TRANSIENT.search(text))),
    )


def end_group(process: subprocess.Popen[str]) -> None:
    """End a process and all its children: interrupted as Ctrl-C does, killed when that does not help."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if not _signal_group(process.pid, number):
            break
        deadline = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < deadline and _signal_group(process.pid, 0):
            process.poll()
            time.sleep(0.05)
    process.wait()


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def end_all(run: str) -> None:
    """End every stage of a run that this process runs, and start no more of them."""
    _ended.add(run)
    with _guard:
        running = [process for process, of_run in _running.items() if of_run == run]
    threads = [threading.Thread(target=end_group, args=(process,)) for process in running]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def raise_if_ending(run: str) -> None:
    """Raises StageError after `end_all` of the run."""
    if run in _ended:
        raise StageError("the run is being cancelled")
