"""A plan on a narrow terminal: which columns go, and that they are named."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from restorelcc.cli.plan_table import print_plans

_COST = {"memory": 3 * 2**30, "gpu_memory": 0, "disk": 2**30, "seconds": 90.0}


def _plan() -> dict[str, Any]:
    stages = [
        {"stage": "prune", "recovery": None, "pruning": pruning, "runs": 1, "to_run": 1} | _COST
        for pruning in ("wanda-0.5", "sparsegpt-2of4")
    ]
    plan: dict[str, Any] = {"model": "m", "source": "s", "parameters": 1e6, "layers": 2, "device": "cpu"}
    plan |= {"dtype": "float32", "flops_per_second": 1e9, "bfloat16_speedup": None, "accuracy": None}
    return plan | {"restored": "a checkpoint", "left": None, "stages": stages}


@pytest.mark.parametrize(("width", "gone"), [(80, []), (62, ["runs"]), (55, ["runs", "disk"])])
def test_prunings_are_the_last_to_go(width: int, gone: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them, the rows of several look alike."""
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=True, no_color=True)
    monkeypatch.setattr("restorelcc.cli.plan_table.Console", lambda: console)
    print_plans([_plan()], "")
    text = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert ("Not shown at this width" in text) == bool(gone)
    assert not gone or f"Not shown at this width: {', '.join(gone)}; --json has them." in text
    assert "wanda-0.5" in text and "sparsegpt-2of4" in text
