"""Calibration texts as an artifact: where they came from and their digest stand in the table itself."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from restorelcc.base.tables import write_texts

_RECORDED = ("source", "revision")


def write_calibration(path: Path, found: list[str], origin: dict[str, Any]) -> None:
    """One row per text; metadata: source, revision where it has one, and the SHA-256 of the texts."""
    digest = hashlib.sha256("\0".join(found).encode()).hexdigest()
    write_texts(path, found, {name: origin[name] for name in _RECORDED if name in origin} | {"digest": digest})
