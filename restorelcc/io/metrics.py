"""Metrics documents: one schema, checked when they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from restorelcc.core.errors import BadInput
from restorelcc.io.documents import read_json

SCHEMA = 2  # 1 had no items' digests, one perplexity and no generation check
_NEEDED = ("model", "pruning", "head_ratio", "tasks", "mean", "perplexity", "params_total", "sparsity")


def read_metrics(path: Path) -> dict[str, Any]:
    """A metrics document. Raises BadInput for one of another schema, or for a file that is none."""
    content = read_json(path)
    found = content.get("schema", 1) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(found, int) or "tasks" not in content:
        raise BadInput(f"{path} holds no metrics: give a file that an evaluate stage wrote (data/metrics/...)")
    if found != SCHEMA:
        age = "an older" if found < SCHEMA else "a newer"
        raise BadInput(
            f"{path} was written by {age} version (metrics schema {found}, this one reads {SCHEMA}): "
            + ("run dvc repro to evaluate again" if found < SCHEMA else "update restorelcc")
        )
    if missing := [name for name in _NEEDED if name not in content]:
        raise BadInput(f"{path} has no {', '.join(missing)}: the file is damaged, delete it and run dvc repro")
    return content
