"""Cells that left the grid: their metrics stay in data/metrics, and the report depends on that whole folder."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from restorelcc.base.documents import read_yaml
from restorelcc.base.layout import Layout


def remove_stale_metrics(layout: Layout, grid: dict[str, Any]) -> list[Path]:
    """Delete from data/metrics all files that no stage of the grid writes, so that it has only the grid's cells.

    DVC's cache keeps them: when a cell comes back into the grid, its metrics come back without being computed.
    """
    stale = stale_metrics(layout, grid)
    for path in stale:
        path.unlink(missing_ok=True)
    for folder in sorted({path.parent for path in stale}, reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    return stale


def stale_metrics(layout: Layout, grid: dict[str, Any]) -> list[Path]:
    """Files under data/metrics that are no output of a stage in dvc.yaml, multiplied out over the grid."""
    pipeline = layout.root / "dvc.yaml"
    if not pipeline.is_file():
        return []
    live = {layout.root / out for out in grid_outs(read_yaml(pipeline), grid)}
    files = sorted(path for path in (layout.data / "metrics").rglob("*") if not path.is_dir())
    return [path for path in files if not live & {path, *path.parents}]


def missing_list(pipeline: dict[str, Any], grid: dict[str, Any]) -> str | None:
    """The first list of the grid that dvc.yaml multiplies out and params.yaml does not have: DVC would not start."""
    named = [values[len("${grid.") : -1] for stage in pipeline["stages"].values() for values in _lists(stage)]
    return next((name for name in named if name not in grid), None)


def _lists(stage: dict[str, Any]) -> list[str]:
    return [values for values in stage.get("matrix", {}).values() if isinstance(values, str)]


def grid_outs(pipeline: dict[str, Any], grid: dict[str, Any]) -> set[str]:
    """Paths that the stages of dvc.yaml write for a grid: outs, metrics and plots of every cell."""
    outs = set()
    for stage in pipeline["stages"].values():
        axes = {axis: grid[values[len("${grid.") : -1]] for axis, values in stage.get("matrix", {}).items()}
        entries = [out for section in ("outs", "metrics", "plots") for out in stage.get(section, [])]
        paths = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
        for values in itertools.product(*axes.values()):
            item = dict(zip(axes, map(str, values), strict=True))
            outs |= {re.sub(r"\$\{item\.(\w+)\}", lambda match, item=item: item[match[1]], path) for path in paths}
    return outs
