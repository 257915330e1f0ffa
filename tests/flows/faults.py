"""Faults for a light project: dvc in a fork of this process, killed or out of disk at a moment of one's choice.

A fork has the imports already, so a run costs what DVC does and no start. `kind`s of faults and their table are here;
tests/flows/test_faults.py says how many of each.
"""

from __future__ import annotations

import builtins
import errno
import logging
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restorelcc.pipeline.lockfile import read_lock
from restorelcc.pipeline.workspace import faults, mend
from tests.flows.light import LightProject

REPRO = ("--wait-for-lock", "repro", "--quiet")


@dataclass
class Row:
    """One kind of fault: how often it struck, how often all was the same bytes after a rerun, what a hand had to do."""

    kind: str
    times: int = 0
    identical: int = 0
    hand: int = 0
    mended: int = 0  # runs after which DVC's own files had to be mended, which our entries do
    zero: int = 0  # exit codes 0 of a run that had failed

    def cells(self) -> tuple[str, ...]:
        return (self.kind, str(self.times), str(self.identical), str(self.hand), str(self.mended))


@dataclass
class Table:
    """All rows, printed at the end."""

    rows: list[Row] = field(default_factory=list)

    def row(self, kind: str) -> Row:
        self.rows.append(Row(kind))
        return self.rows[-1]

    def text(self) -> str:
        head = ("fault", "times", "identical after a rerun", "hand work", "DVC's files mended")
        lines = [head, *(row.cells() for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        )


class Victim:
    """A light project that has been computed once; `run` computes it again in a fork, from where it is."""

    def __init__(self, project: LightProject) -> None:
        self.project = project
        if not (project.folder / "dvc.lock").is_file():
            project.repro()
        inputs = project.folder.with_name("inputs")
        shutil.copytree(project.folder / "data/inputs", inputs, symlinks=True, dirs_exist_ok=True)
        self.environment = project.environment | {"STANDIN_INPUTS": str(inputs)}
        self.expected = project.artifacts()
        self.lock = read_lock(project.folder)
        self.output = project.folder.with_name("output.txt")
        self.output.touch()

    def forget(self) -> None:
        """Begin from nothing: no artifacts, no cache, no dvc.lock."""
        folder = self.project.folder
        for path in (folder / "data", folder / ".dvc/cache", folder / ".dvc/tmp", folder / ".work"):
            shutil.rmtree(path, ignore_errors=True)
        (folder / "dvc.lock").unlink(missing_ok=True)

    def start(self, *arguments: str, before: Callable[[], None] | None = None, **environment: str) -> int:
        """Fork a dvc command, the leader of a process group; its number."""
        number = os.fork()
        if number:
            return number
        code = 1
        try:
            code = self._become(arguments, before, environment)
        finally:
            os._exit(code & 0xFF)

    def _become(self, arguments: tuple[str, ...], before: Callable[[], None] | None, more: dict[str, str]) -> int:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(self.project.folder)
        os.environ.clear()
        os.environ.update(self.environment | more)
        target = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(target, descriptor)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        sys.argv = ["dvc", *arguments]
        from dvc.cli import main

        for handler in logging.getLogger("dvc").handlers:  # of the streams that were there when DVC was imported
            if isinstance(handler, logging.StreamHandler):
                handler.stream = sys.stderr if handler.level >= logging.WARNING else sys.stdout
        parse_by_libyaml()
        if before:
            before()
        return int(main(list(arguments)))

    def run(self, *arguments: str, before: Callable[[], None] | None = None, **environment: str) -> int:
        """The exit code of a dvc command; minus the signal that ended it."""
        return ended(self.start(*(arguments or REPRO), before=before, **environment))

    def rerun(self, row: Row) -> None:
        """What `make repro` does after a fault: mend, run; then all must be there, as if nothing had happened."""
        row.mended += bool(mend(self.project.folder))
        code = self.run()
        whole = self.project.artifacts() == self.expected and read_lock(self.project.folder) == self.lock
        row.hand += bool(code)
        row.identical += code == 0 and whole
        assert not faults(self.project.folder)


def parse_by_libyaml() -> None:
    """What fast_lock/sitecustomize.py does, where DVC is imported already."""
    import dvc.utils.serialize
    from dvc.utils.serialize import _yaml

    from tests.flows.fast_lock.sitecustomize import patch_yaml

    before = {name: getattr(_yaml, name) for name in ("parse_yaml", "parse_yaml_for_update", "_dump")}
    patch_yaml(_yaml)
    new = {old: getattr(_yaml, name) for name, old in before.items()}
    for module in [module for name, module in sys.modules.items() if name.startswith("dvc.")]:
        for name, value in list(vars(module).items()):
            if callable(value) and getattr(value, "__module__", "") == _yaml.__name__ and value in new:
                setattr(module, name, new[value])
    for table in (dvc.utils.serialize.PARSERS, dvc.utils.serialize.LOADERS):
        for suffix, value in list(table.items()):
            table[suffix] = new.get(value, value)


def ended(number: int, seconds: float = 300) -> int:
    """Wait for a process of ours."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(number, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    raise AssertionError(f"process {number} does not end")


def kill_at(victim: Victim, whom: str, delay: float) -> bool:
    """Start dvc and kill it, a stage of it, or its whole group after so many seconds; whether it still ran then."""
    number = victim.start(*REPRO)
    time.sleep(delay)
    if os.waitpid(number, os.WNOHANG)[0]:
        return False
    if whom == "stage":
        for child in children(number):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    elif whom == "group":
        os.killpg(number, signal.SIGKILL)
    else:
        os.kill(number, signal.SIGINT if whom == "Ctrl-C" else signal.SIGKILL)
    ended(number)
    return True


def children(number: int) -> list[int]:
    """Processes that a process started, and those that they started."""
    import psutil

    try:
        return [child.pid for child in psutil.Process(number).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


Strike = Callable[[], bool]


def struck(victim: Victim, row: Row, strikes: list[Strike], per_round: int = 6) -> None:
    """Faults one after another in the middle of one computation, then a rerun; and from nothing again for the next few.

    Every one of a round counts as identical when the rerun at its end is.
    """
    while strikes:
        victim.forget()
        hits = 0
        for strike in strikes[:per_round]:
            hits += strike()
            row.mended += bool(mend(victim.project.folder))
        strikes = strikes[per_round:]
        before = row.identical
        victim.rerun(row)
        row.times += hits
        row.identical += (hits - 1) * (row.identical - before)


def kills(victim: Victim, table: Table, whom: str, times: int, chance: random.Random) -> None:
    """Kill dvc, its stage or its group at random moments; a run that ended before its moment counts as none."""
    row = table.row(whom if whom == "Ctrl-C" else f"kill -9: {whom}")
    moments = [chance.uniform(0.02, 2) for _ in range(times)]
    struck(victim, row, [lambda moment=moment: kill_at(victim, whom, moment) for moment in moments])


def at_write(folder: Path, number: int, what: str, name: str = "") -> Callable[[], None]:
    """In the fork: when a file below the folder is opened for writing for the n-th time, end, or be out of disk.

    `name`: only files of that name. The file is emptied first, as it is when the first block finds no
    room.
    """

    def patch() -> None:
        true, count = builtins.open, 0

        def opened(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            nonlocal count
            result = true(file, mode, *rest, **named)
            if isinstance(file, str | os.PathLike) and set(mode) & set("wxa") and "lock" not in Path(file).suffix[1:4]:
                path = Path(file).absolute()
                if path.is_relative_to(folder) and (not name or path.name == name):
                    count += 1
                    if count >= number:
                        result.close()
                        if what == "kill":
                            os.kill(os.getpid(), signal.SIGKILL)
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return result

        builtins.open = opened

    return patch


def writes(victim: Victim, table: Table, what: str, numbers: list[int], name: str = "") -> None:
    """Kill, or run out of disk, when dvc opens a file for the n-th time; then rerun."""
    row = table.row(f"{'kill -9' if what == 'kill' else 'disk full'}: dvc writes {name or 'any file'}")

    def strike(number: int) -> bool:
        code = victim.run(before=at_write(victim.project.folder, number, what, name))
        row.zero += code == 0
        return True

    struck(victim, row, [lambda number=number: strike(number) for number in numbers], 4)
