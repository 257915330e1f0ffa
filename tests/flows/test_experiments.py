"""What DVC shows of the grid: experiments, metrics, plots, the DAG. Real dvc.yaml, light stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.flows.light import LightProject

GRID = {"pruning": ["wanda-0.5"], "head_ratio": [0.25]}
CELLS = {"data/metrics/tiny/dense.json", "data/metrics/tiny/wanda-0.5/pruned.json"}
HALF = "data/metrics/tiny/wanda-0.5/heads-0.5.json"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> LightProject:
    project = LightProject(tmp_path_factory.mktemp("experiments") / "project", GRID)
    project.repro()
    project.commit("results")
    return project


def shown(project: LightProject, *command: str) -> Any:
    """A dvc command's JSON."""
    return json.loads(project.sh("dvc", *command, "--json").splitlines()[-1])


def test_an_experiment_runs_its_cells_only_and_is_compared(project: LightProject, tmp_path: Path) -> None:
    copy = project.copy(tmp_path / "copy")
    copy.sh("dvc", "exp", "run", "--set-param", "grid.head_ratio=[0.5]", "--name", "half")
    new = {"compensate@tiny-wanda-0.5-0.5", "evaluate_restored@tiny-wanda-0.5-0.5", "report"}
    assert set(copy.executed()) == new
    names = {each["name"] for each in shown(copy, "exp", "show") if each["name"]} | {
        revision["name"]
        for each in shown(copy, "exp", "show")
        for experiment in each["experiments"] or []
        for revision in experiment["revs"]
    }
    assert {"main", "half"} <= names
    diff = shown(copy, "metrics", "diff")
    assert set(diff) == {HALF, "data/metrics/tiny/wanda-0.5/heads-0.25.json"}, "one cell new, one gone"
    assert shown(copy, "params", "diff")["params.yaml"]["grid.head_ratio"] == {"old": "[0.25]", "new": "[0.5]"}


def test_an_experiment_in_a_folder_of_its_own_leaves_this_one_alone(project: LightProject, tmp_path: Path) -> None:
    copy = project.copy(tmp_path / "copy")
    before, artifacts = (copy.folder / "params.yaml").read_bytes(), copy.artifacts()
    copy.sh("dvc", "exp", "run", "--temp", "-S", "grid.pruning=[wanda-0.6]", "--name", "sparser")
    assert {name.partition("@")[0] for name in copy.executed()}.isdisjoint({"corpus", "dense", "capture_dense"})
    assert (copy.folder / "params.yaml").read_bytes() == before
    assert copy.artifacts() == artifacts
    assert "sparser" in copy.sh("dvc", "exp", "list", "--name-only")


def test_metrics_plots_and_the_dag_show_every_cell(project: LightProject) -> None:
    metrics = shown(project, "metrics", "show")[""]["data"]
    assert set(metrics) == {*CELLS, "data/metrics/tiny/wanda-0.5/heads-0.25.json"}
    assert all(each["data"]["value"] >= 0 for each in metrics.values())
    plots = shown(project, "plots", "show")["data"]
    assert any("recovered" in name for name in plots)
    drawn = project.sh("dvc", "dag", "--full")
    assert {name for name in project.executed() if name in drawn} == set(project.executed())
