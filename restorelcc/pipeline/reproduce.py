"""`dvc repro` of one stage and what it needs, in this process; the stages run in processes of the same package."""

from __future__ import annotations

import os
import re
import shlex
import sys
from contextlib import chdir
from pathlib import Path

from restorelcc.base.errors import StageFailed, first_line
from restorelcc.base.layout import Layout
from restorelcc.base.progress import notice
from restorelcc.base.publish import put
from restorelcc.pipeline.dvc_log import told
from restorelcc.pipeline.one_run import dvc_reads, environment
from restorelcc.pipeline.overrides import put_over
from restorelcc.pipeline.workspace import mend, wait_for_others

_EXIT = re.compile(r"exited with (-?\d+)")
_SAID = {1, 2, 130, 143}  # exit codes of `restorelcc`, which has printed its sentence then
_PACKAGES = Path(__file__).parents[2]  # where this package is imported from


class StageEnded(Exception):
    """A stage failed and has printed the reason itself; `code` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"a stage ended with exit code {code}")
        self.code = code


def reproduce(layout: Layout, target: str | None, title: str, settings: tuple[str, ...] = ()) -> None:
    """Run a stage, or all, and those that it needs, if they changed; says under `title` which did not.

    settings: `section.key=value` over params.yaml, for this run. Without a target the project is the user's own, whose
    DVC has its settings already.

    Raises StageEnded when one fails, and StageFailed when it could not print a reason.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    config = None
    if target is not None:
        config = {"core": {"site_cache_dir": str(layout.root / ".dvc" / "tmp" / "site")}}  # goes with the folder
    while True:
        for sentence in mend(layout.root):
            notice(title, sentence)
        try:
            with (
                told(title),
                dvc_reads(layout.root / "params.yaml", lambda content: put_over(content, settings)),
                chdir(layout.root),
                Repo(str(layout.root), config=config, _wait_for_lock=True) as repo,
            ):
                repo.reproduce(targets=target and [target], run_env=_environment(layout) | environment(settings))
            return
        except DvcException as error:
            if not any(isinstance(cause, LockError) for cause in _causes(error)):
                raise _ended(error, target or "the project") from error
            wait_for_others(layout.root, title)


def _causes(error: BaseException) -> list[BaseException]:
    """An error, what it comes from, and so on."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    return causes


def _ended(error: BaseException, target: str) -> StageEnded | StageFailed:
    """What DVC's error comes from."""
    causes = _causes(error)
    for cause in causes:
        if match := _EXIT.search(str(cause)):
            code = int(match[1])
            return StageEnded(code) if code in _SAID else StageFailed(f"{first_line(error)}: it ended with {code}")
    return StageFailed(f"DVC could not run {target}: {first_line(causes[-1])}")


def _environment(layout: Layout) -> dict[str, str]:
    """Variables under which `restorelcc` is this package in this interpreter, whatever else is on the path."""
    folder = layout.work / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    command, scratch = folder / "restorelcc", folder / f".restorelcc.{os.getpid()}"
    scratch.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m restorelcc "$@"\n', encoding="utf-8")
    scratch.chmod(0o755)
    put(scratch, command)
    before = {name: os.environ.get(name) for name in ("PATH", "PYTHONPATH")}
    return {
        "RESTORELCC_TABLE": "0",  # whoever calls prints it last, also where the report did not have to run
        "PATH": os.pathsep.join([str(folder), before["PATH"] or os.defpath]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_PACKAGES), before["PYTHONPATH"]])),
    }
