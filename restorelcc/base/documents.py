"""JSON documents, written so that equal content gives equal bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
