"""Where the real weights and data are that some tests use: $RESTORELCC_REAL, or shared/real beside the project."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.dag import ROOT


def real_folder() -> Path:
    """The folder; skips the test, saying why, when it is absent."""
    folder = Path(os.environ.get("RESTORELCC_REAL") or ROOT.parent / "shared" / "real")
    if not (folder / "models").is_dir():
        pytest.skip(f"no real weights in {folder}: set RESTORELCC_REAL to the folder that has them")
    return folder


def real_texts(name: str, count: int) -> list[str]:
    """The first texts of a table of stories."""
    lines = (real_folder() / "data" / "stories" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[:count]]
