"""The true pico pipeline, through the flow: the bytes that `dvc repro` writes. Minutes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.dag import ROOT
from tests.test_end_to_end import Project

pytestmark = pytest.mark.slow


def artifacts(project: Project) -> dict[str, object]:
    """Every file under data/: metrics without their timings, the rest as bytes."""
    found: dict[str, object] = {}
    data = project.folder / "data"
    for path in sorted(file for file in data.rglob("*") if file.is_file()):
        name = str(path.relative_to(data))
        if name.startswith("metrics/") and path.suffix == ".json":
            content = project.json(f"data/{name}")
            found[name] = {key: value for key, value in content.items() if key not in ("seconds", "versions")}
        elif path.suffix in (".safetensors", ".parquet"):
            found[name] = path.read_bytes()
    return found


def test_the_flow_writes_what_repro_writes(tmp_path: Path) -> None:
    one, other = Project(tmp_path / "repro"), Project(tmp_path / "flow")
    one.repro()
    other.environment |= {"RESTORELCC_ROOT": str(other.folder), "PYTHONPATH": str(ROOT)}
    text = other.run(sys.executable, "-m", "flows.restore", "--parallel", "2")
    assert "12 Ran" in text
    ours, theirs = artifacts(one), artifacts(other)
    assert set(ours) == set(theirs) != set()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert other.repro() == set()
