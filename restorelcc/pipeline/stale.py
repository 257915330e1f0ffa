"""Cells that left the grid: their metrics stay in data/metrics, and the report depends on that whole folder."""

from __future__ import annotations

import hashlib
import itertools
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from restorelcc.base.documents import read_yaml
from restorelcc.base.errors import StageFailed
from restorelcc.base.layout import Layout
from restorelcc.base.processes import started_by_dvc
from restorelcc.base.progress import notice
from restorelcc.pipeline.workspace import dvc_lock, other_runs


def remove_stale_metrics(layout: Layout, grid: dict[str, Any]) -> list[Path]:
    """Delete from data/metrics the files that no stage of the grid writes and DVC's cache has: when a cell comes back
    into the grid, its metrics come back without being computed. What the cache has not stays, and that is told.

    All stay while another run is under way: it may be of another grid, and need them. So that none goes on to its next
    stage meanwhile, the caller holds DVC's lock.
    """
    found = stale_metrics(layout, grid)
    if found and other_runs(layout.root, layout.report if started_by_dvc() else None):
        return []
    stale = _kept_by_dvc(found, layout.root) if found else []
    if own := [str(path.relative_to(layout.root)) for path in found if path not in stale]:
        more = f" and {len(own) - 3} more" if len(own) > 3 else ""
        notice("report", f"no result of the grid, and left as they are: {', '.join(own[:3])}{more}")
    for path in stale:
        path.unlink(missing_ok=True)
    for folder in sorted({path.parent for path in stale}, reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    return stale


def remove_stale_metrics_if_alone(layout: Layout, grid: dict[str, Any]) -> None:
    """`remove_stale_metrics` under DVC's lock; nothing is deleted where somebody else holds it."""
    if (layout.root / ".dvc").is_dir() and stale_metrics(layout, grid):
        with suppress(StageFailed), dvc_lock(layout.root, patience=0):
            remove_stale_metrics(layout, grid)


def _kept_by_dvc(paths: list[Path], root: Path) -> list[Path]:
    """Those whose content is in DVC's cache."""
    if not (root / ".dvc").is_dir():
        return []
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        return [
            path
            for path in paths
            if repo.cache.local.exists(hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest())
        ]


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


def axis_values(values: Any, grid: dict[str, Any]) -> list[Any]:
    """Of an axis of a matrix: a list of its own, or one of the grid's; of anything else none are known here."""
    if isinstance(values, list):
        return values
    name = str(values).removeprefix("${grid.").removesuffix("}")
    return list(grid.get(name, []))


def grid_outs(pipeline: dict[str, Any], grid: dict[str, Any]) -> set[str]:
    """Paths that the stages of dvc.yaml write for a grid: outs, metrics and plots of every cell."""
    outs = set()
    for stage in pipeline["stages"].values():
        axes = {axis: axis_values(values, grid) for axis, values in stage.get("matrix", {}).items()}
        entries = [out for section in ("outs", "metrics", "plots") for out in stage.get(section, [])]
        paths = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
        for values in itertools.product(*axes.values()):
            item = dict(zip(axes, map(str, values), strict=True))
            outs |= {re.sub(r"\$\{item\.(\w+)\}", lambda match, item=item: item[match[1]], path) for path in paths}
    return outs
