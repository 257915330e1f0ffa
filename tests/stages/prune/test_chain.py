"""Every kind of pruning runs through the whole chain, `dvc repro`, by one change of grid.pruning."""

import json
import shutil
from pathlib import Path

import pytest

from tests.whole_project import Project

STAGES = {"prune", "capture_pruned", "extract", "probe", "compensate", "evaluate_pruned", "evaluate_restored", "report"}


@pytest.mark.slow
def test_each_pruning_is_one_change_of_the_grid(tmp_path: Path, forked: Path) -> None:
    project = Project(tmp_path / "project", socket=forked)
    project.set("grid", "pruning", ["sparsegpt-2of4"])
    project.repro()
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(project.folder / "data/tiny/sparsegpt-2of4/pruned", elsewhere)
    project.set("prune", "external", {"tiny": {"x": {"source": str(elsewhere)}}})
    for pruning, sparsity in (("wanda-4of8", 0.5), ("slimgpt-0.2", 0.2), ("external-x", 0.5)):
        project.set("grid", "pruning", [pruning])
        ran = project.repro() - {"inputs@tiny"}  # it looks at files and computes nothing
        assert {name.split("@")[0] for name in ran} == STAGES
        metrics = json.loads((project.folder / f"data/metrics/tiny/{pruning}/heads-0.25.json").read_text())
        assert metrics["pruning"] == pruning
        report = json.loads((project.folder / f"data/tiny/{pruning}/pruned/sparsity.json").read_text())
        assert report["achieved"] == pytest.approx(sparsity, abs=0.01)
    assert not list((project.folder / "data/tiny/external-x/pruned").glob("*.safetensors")), "weights are not copied"
