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
from restorelcc.pipeline.lockfile import heal

_EXIT = re.compile(r"exited with (-?\d+)")
_SAID = {1, 2, 130}  # exit codes of `restorelcc`, which has printed its sentence then
_PACKAGES = Path(__file__).parents[2]  # where this package is imported from


class StageEnded(Exception):
    """A stage failed and has printed the reason itself; `code` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"a stage ended with exit code {code}")
        self.code = code


def reproduce(layout: Layout, target: str, title: str) -> None:
    """Run a stage and those that it needs, if they changed; says under `title` which did not.

    Raises StageEnded when one fails, and StageFailed when it could not print a reason.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo

    site = {"core": {"site_cache_dir": str(layout.root / ".dvc" / "tmp" / "site")}}  # goes with the folder
    try:
        with told(title), chdir(layout.root), Repo(str(layout.root), config=site) as repo:
            with lock_repo(repo):
                if healed := heal(layout.root):
                    notice(title, healed)
            repo.reproduce(targets=[target], run_env=_environment(layout))
    except DvcException as error:
        raise _ended(error, target) from error


def _ended(error: BaseException, target: str) -> StageEnded | StageFailed:
    """What DVC's error comes from."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
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
        "PATH": os.pathsep.join([str(folder), before["PATH"] or os.defpath]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_PACKAGES), before["PYTHONPATH"]])),
    }
