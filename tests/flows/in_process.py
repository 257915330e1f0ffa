"""DVC and its stages in the test's own process: real pipelines, locks and caches, without the seconds of imports."""

from __future__ import annotations

import copy
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import dvc.utils.serialize
import pytest
from dvc.output import Output
from dvc.parsing.interpolate import parse_expr
from dvc.repo import Repo
from dvc.stage.exceptions import StageCmdFailedError
from dvc.utils.serialize import _yaml
from fsspec.implementations.memory import MemoryFileSystem

from restorelcc.base.errors import BadInput
from restorelcc.cli.app import app
from tests.flows import standin
from tests.flows.fast_lock.sitecustomize import patch_yaml

FAST = ("parse_yaml", "parse_yaml_for_update", "_dump")
PARSE_EXPRESSION = cache(parse_expr)  # of the same `item.model` DVC finds a thousand times that it is well written


@contextmanager
def repo_here(folder: Path, environment: dict[str, str]) -> Iterator[Repo]:
    """The repository in `folder`, as a process there has it. Its stages are calls of the stand-in."""
    with pytest.MonkeyPatch.context() as patch, chdir(folder):
        for name in [name for name in os.environ if name not in environment and not name.startswith("PYTEST")]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        fast_yaml(patch)
        patch.setattr(Output, "_build", _looked_at_once())
        patch.setattr("dvc.stage.run._run", _run)
        MemoryFileSystem.store.clear()  # DVC keeps each folder's list there, and searches all of them for every one
        with Repo() as repo:
            yield repo


def _looked_at_once() -> Callable[..., Any]:
    """For Output._build: dozens of stages depend on the same folders of code, which no stage changes."""
    build, known = Output._build, dict[tuple[object, ...], Any]()

    def build_once(self: Output, *arguments: Any, **named: Any) -> Any:
        if not self.IS_DEPENDENCY or not self.def_path.startswith(("restorelcc/", "versions/")):
            return build(self, *arguments, **named)
        key = (self.def_path, id(arguments[0]), named.get("dry_run"))
        if key not in known:
            known[key] = build(self, *arguments, **named)
        database, meta, found = known[key]
        return database, copy.copy(meta), found

    return build_once


def fast_yaml(patch: pytest.MonkeyPatch) -> None:
    """Have DVC read and write its files in this process as fast_lock/sitecustomize.py has it in others."""
    for name in FAST:
        patch.setattr(_yaml, name, getattr(_yaml, name))  # put back at the end
    patch_yaml(_yaml)
    patch.setattr(dvc.utils.serialize, "parse_yaml", _yaml.parse_yaml)
    patch.setattr("dvc.parsing.interpolate.parse_expr", PARSE_EXPRESSION)


def _run(executable: str, command: str, cwd: str, env: dict[str, str], **rest: Any) -> None:
    name, *arguments = shlex.split(command)
    assert name == "restorelcc"
    with pytest.MonkeyPatch.context() as patch, chdir(cwd):
        patch.setenv("DVC_STAGE", env["DVC_STAGE"])
        code = standin.main(arguments, _look)
    if code:
        raise StageCmdFailedError(command, code)


def _look(model: str) -> int:
    try:
        app(["inputs", "--model", model], standalone_mode=False)
    except BadInput:
        return 2
    return 0
