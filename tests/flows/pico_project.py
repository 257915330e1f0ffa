"""The light project with the true stages in place of the stand-in, at pico size and with their imports shared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.flows.light import LightProject
from tests.flows.servers import forked_command
from tests.whole_project import PICO, merged

# Of metrics: what is measured of the process differs between two runs of the same stage.
MEASURED = ("sha256", "seconds", "versions", "cost", "latency", "peak_memory_bytes")


class PicoProject(LightProject):
    """True numerics: every stage runs as it does for a user, seconds of imports aside."""

    def __init__(self, folder: Path, socket: Path, grid: dict[str, Any] | None = None, models: int = 1) -> None:
        self.forked = forked_command(socket)
        super().__init__(folder, grid, models)
        for seed, name in enumerate(list(self.params()["models"])[1:], start=1):
            self.set(f"models.{name}.settings", {"dense": {"pretrain": {"seed": seed}}})
        self.commit("every model from a seed of its own")

    def shipped_params(self) -> dict[str, Any]:
        return merged(super().shipped_params(), PICO)

    def command(self, log: Path) -> str:
        """The command in a fork, with its start and end in the log."""
        note = f'echo "$1 $DVC_STAGE $$ $(date +%s.%N)" >> {log}'
        start = f'#!/bin/sh\nnote() {{ [ -z "$DVC_STAGE" ] || {note}; }}\nnote start\n'
        return f'{start}{self.forked} "$@" || exit $?\nnote end\n'

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
