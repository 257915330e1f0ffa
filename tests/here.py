"""Stages that DVC runs, run in the test's own process: only the seconds of their imports are left out."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from typing import Any

import pytest
from dvc.stage.exceptions import StageCmdFailedError

from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.cli.app import app
from tests.flows.in_process import fast_yaml


@contextmanager
def stages_run_here() -> Iterator[list[str]]:
    """Yields the commands of stages that ran. One that refuses ends as its process would: said, with an exit code."""
    commands: list[str] = []

    def run(executable: str, command: str, cwd: str, env: dict[str, str], **rest: Any) -> None:
        name, *arguments = shlex.split(command)
        assert name == "restorelcc" and env["PATH"].startswith(f"{cwd}{os.sep}.work")
        commands.append(" ".join(arguments))
        try:
            with chdir(cwd):
                app(arguments, standalone_mode=False)
        except (BadInput, StageFailed) as error:
            print(f"restorelcc: {error}")
            raise StageCmdFailedError(command, 2 if isinstance(error, BadInput) else 1) from None

    with pytest.MonkeyPatch.context() as patch:
        fast_yaml(patch)
        patch.setattr("dvc.stage.run._run", run)
        yield commands
