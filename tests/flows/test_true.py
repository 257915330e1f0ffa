"""True stages of pico models: the table of changes, and a grid in four ways. Minutes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.dag import ROOT
from tests.flows.light import LightProject
from tests.flows.pico_project import PicoProject
from tests.flows.test_exact import ALL, CHANGES, GRID, MODELS, REPORT, Change, cells, param
from tests.flows.test_machines import four_ways
from tests.whole_project import Project

pytestmark = pytest.mark.slow
WIDE = {"pruning": ["wanda-0.5", "wanda-0.6"], "head_ratio": [0.1, 0.25, 0.5]}
NODES = 3 * 5 + 6 * 5 + 18 * 2 + 1


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, forked: Path) -> LightProject:
    project = PicoProject(tmp_path_factory.mktemp("true") / "base", forked, GRID, models=3)
    project.set("grid.model", list(MODELS))
    assert set(project.repro()) == cells(*ALL) | REPORT
    return project


def installed(package: str) -> Change:
    """Another version of a package, as far as its metadata say, and `restorelcc versions` as `make repro` runs it."""

    def change(project: LightProject) -> None:
        folder = project.folder / f"{package.replace('-', '_')}-99.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 99.0\n")
        assert f"{package}: " in project.restorelcc("versions").text

    return change


# Where true stages take other values than the stand-in, or show them: metrics hold the versions of their measurement.
TRUE: dict[str, tuple[Change, set[str]]] = CHANGES | {
    "corpus": (param("corpus.microworld.seed", 7), CHANGES["corpus"][1]),
    "dense": (param("dense.architecture.common", 0.5), CHANGES["dense"][1]),
    "extract": (param("extract.solver", "gram"), cells("extract")),  # what auto takes: the same bytes, nothing follows
    "torch": (installed("torch"), CHANGES["torch"][1] | REPORT),
    "scikit-learn": (installed("scikit-learn"), CHANGES["scikit-learn"][1]),
    "lm-eval": (installed("lm-eval"), CHANGES["lm-eval"][1] | REPORT),
}


@pytest.mark.parametrize("name", TRUE)
def test_a_change_runs_exactly_what_depends_on_it(base: LightProject, tmp_path: Path, name: str) -> None:
    change, expected = TRUE[name]
    project = base.copy(tmp_path / "copy")
    change(project)
    assert sorted(project.repro()) == sorted(expected)


def test_four_ways_run_every_stage_once_and_give_the_same_bytes(
    tmp_path: Path, forked: Path, prefect: dict[str, str]
) -> None:
    four_ways(PicoProject(tmp_path / "repro", forked, WIDE, models=3), tmp_path, prefect, NODES, again=True)


def test_the_flow_writes_what_repro_writes_with_processes_of_their_own(tmp_path: Path) -> None:
    """Without the shared imports: as a user runs it."""
    one, other = Project(tmp_path / "repro"), Project(tmp_path / "flow")
    one.repro()
    other.environment |= {"RESTORELCC_ROOT": str(other.folder), "PYTHONPATH": str(ROOT)}
    text = other.run(sys.executable, "-m", "flows.restore", "--parallel", "2")
    assert "13 Ran" in text
    for name in ("components.safetensors", "heads.parquet", "heads-0.25/compensation.safetensors"):
        path = f"data/tiny/wanda-0.5/{name}"
        assert (one.folder / path).read_bytes() == (other.folder / path).read_bytes(), name
    assert other.repro() == set()
