"""JSON documents, written so that equal content gives equal bytes; those of metrics have a schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from restorelcc.base.cell import AUTO, Cell
from restorelcc.base.errors import BadInput


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented, keys in the order given, never NaN (which is not JSON)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json_text(content), encoding="utf-8")


def json_text(content: dict[str, Any]) -> str:
    """What `write_json` writes."""
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Raises BadInput when the file is missing or not JSON."""
    if not path.is_file():
        raise BadInput(f"{path} is missing: run the stage that writes it (dvc repro)")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} is not valid JSON ({error}): delete it and run dvc repro") from error


# 1 had no items' digests, one perplexity and no generation check; 2 did not say how it was measured.
SCHEMA = 3
_NEEDED = ("model", "pruning", "head_ratio", "measured", "tasks", "mean", "perplexity", "params_total", "sparsity")


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
            + ("it cannot be compared, run dvc repro to evaluate again" if found < SCHEMA else "update restorelcc")
        )
    if missing := [name for name in _NEEDED if name not in content]:
        raise BadInput(f"{path} has no {', '.join(missing)}: the file is damaged, delete it and run dvc repro")
    return content


def cell_of(metrics: dict[str, Any]) -> Cell:
    """The cell that a metrics document is of."""
    ratio = metrics["head_ratio"]
    label = None if ratio is None else AUTO if metrics.get("head_ratio_auto") else f"{ratio:g}"
    return Cell(metrics["model"], metrics["pruning"], label, metrics.get("recovery"))
