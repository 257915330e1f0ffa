"""The light project with the true stages in place of the stand-in, at pico size and with their imports shared."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.dag import ROOT
from tests.flows.light import LightProject
from tests.flows.servers import process, wait_for
from tests.test_end_to_end import PICO, merged

FORKED = Path(__file__).with_name("forked.py")
_SOCKET = "RESTORELCC_FORKED"
# Of metrics: what is measured of the process differs between two runs of the same stage.
MEASURED = ("seconds", "versions", "cost", "latency", "peak_memory_bytes")


@contextmanager
def forked_stages(folder: Path) -> Iterator[None]:
    """The process whose forks are the stages of every PicoProject made within."""
    path = folder / "socket"
    command = (sys.executable, "-m", "tests.flows.forked", "serve", str(path))
    with process(*command, log=folder / "forked.log", PYTHONPATH=str(ROOT), RESTORELCC_PROGRESS="0"):
        wait_for(path.exists, "the process with the imports")
        os.environ[_SOCKET] = str(path)
        try:
            yield
        finally:
            del os.environ[_SOCKET]


class PicoProject(LightProject):
    """True numerics: every stage runs as it does for a user, seconds of imports aside."""

    def __init__(self, folder: Path, grid: dict[str, Any] | None = None, models: int = 1) -> None:
        super().__init__(folder, grid, models)
        for seed, name in enumerate(list(self.params()["models"])[1:], start=1):
            self.set(f"models.{name}.settings", {"dense": {"pretrain": {"seed": seed}}})
        self.commit("every model from a seed of its own")

    def shipped_params(self) -> dict[str, Any]:
        return merged(super().shipped_params(), PICO)

    def command(self, log: Path) -> str:
        """The command in a fork, with its start and end in the log."""
        note = f'echo "$1 $DVC_STAGE $$ $(date +%s.%N)" >> {log}'
        forked = f'{sys.executable} -I -S {FORKED} "{os.environ[_SOCKET]}" "$@"'
        return f'#!/bin/sh\nnote() {{ [ -z "$DVC_STAGE" ] || {note}; }}\nnote start\n{forked} || exit $?\nnote end\n'

    def results(self) -> dict[str, object]:
        """What stages compute, bytes and metrics; no timings, nor the logs and the report, which show them."""
        found: dict[str, object] = {}
        for name, content in self.artifacts().items():
            if name.startswith("metrics/") and name.endswith(".json"):
                metrics = json.loads(content)
                found[name] = {key: value for key, value in metrics.items() if key not in MEASURED}
            elif not name.startswith(("report/", "logs/")):
                found[name] = content
        return found
