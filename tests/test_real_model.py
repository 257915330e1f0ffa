"""A real model and the paper's tasks from packages, with the budget that a person waits for, from nothing. Long."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.package import real_model
from tests.whole_project import Project

pytestmark = pytest.mark.slow
MODEL = "smollm2-135m-pip"


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, float]:
    """The project after a run of the whole grid, and the seconds that it took."""
    real_model()
    project = Project(tmp_path_factory.mktemp("real") / "project", changes={"grid": {"model": [MODEL]}})
    project.environment.pop("OMP_NUM_THREADS", None)  # one thread is for tests that share the cores
    started = time.perf_counter()
    project.repro()
    return project, time.perf_counter() - started


def test_the_quick_budget_gives_a_table_within_the_planned_time(restored: tuple[Project, float]) -> None:
    project, seconds = restored
    said = project.run("restorelcc", "plan", "--model", MODEL, "--json")
    plan = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert seconds < 1.3 * plan["budgets"]["quick"]["seconds"] + 60
    dense, pruned = (project.json(f"data/metrics/{MODEL}/{name}.json") for name in ("dense", "wanda-0.5/pruned"))
    assert dense["tasks"]["arc_easy"]["n"] == 200 and dense["tasks"]["arc_easy"]["metric"] == "acc"
    assert dense["tasks"]["arc_easy"]["value"] > 0.45, "it is a model that knows something"
    assert pruned["perplexity"]["value"] > dense["perplexity"]["value"]
    for ratio in (0.1, 0.25):
        found = project.json(f"data/metrics/{MODEL}/wanda-0.5/heads-{ratio}.json")
        assert found["sparsity"] == pruned["sparsity"], "no zero is lost"
        assert found["perplexity"]["value"] < pruned["perplexity"]["value"]


def test_a_second_run_does_nothing(restored: tuple[Project, float]) -> None:
    project, _ = restored
    assert project.repro() == set()


def test_what_is_exported_loads_and_is_verified(restored: tuple[Project, float], tmp_path: Path) -> None:
    project, _ = restored
    cell = ("--model", MODEL, "--pruning", "wanda-0.5", "--head-ratio", "0.25")
    project.run("restorelcc", "export", *cell, "--out", str(tmp_path / "out"))
    project.run("restorelcc", "verify", str(tmp_path / "out"))
