"""A change and the exact set of stages that `dvc repro` then executes. The DAG is real, the stages are light."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from dvc.cli import main as dvc

from restorelcc.pipeline.versions import read_groups, write_version
from tests.flows.in_process import repo_here
from tests.flows.light import LightProject

GRID = {"pruning": ["wanda-0.5"], "head_ratio": [0.1, 0.25]}
MODELS, PRUNINGS, RATIOS = ("tiny", "second"), ("wanda-0.5",), ("0.1", "0.25")
PER_MODEL = ("inputs", "corpus", "dense", "capture_dense", "evaluate_dense")
PER_PRUNING = ("prune", "capture_pruned", "extract", "probe", "evaluate_pruned")
PER_RATIO = ("compensate", "evaluate_restored")
ALL = (*PER_MODEL, *PER_PRUNING, *PER_RATIO)

# Of the code, what is edited below.
EDITED = ("restorelcc/stages/prune/prune.py", "restorelcc/stages/report/tables.py", "restorelcc/models/hooks.py")
EDITED += ("restorelcc/cli/app.py",)

Change = Callable[[LightProject], None]


def cells(*kinds: str, models=MODELS, prunings=PRUNINGS, ratios=RATIOS) -> set[str]:
    """Names of all cells of some stages; stages per model only do not depend on prunings and ratios."""
    names = {f"{kind}@{model}" for kind in kinds if kind in PER_MODEL for model in models}
    names |= {f"{kind}@{m}-{p}" for kind in kinds if kind in PER_PRUNING for m in models for p in prunings}
    return names | {
        f"{kind}@{m}-{p}-{r}" for kind in kinds if kind in PER_RATIO for m in models for p in prunings for r in ratios
    }


def param(key: str, value: object) -> Change:
    return lambda project: project.set(key, value)


def edit(path: str) -> Change:
    """An edit of a file that changes its bytes and nothing that it does."""

    def change(project: LightProject) -> None:
        file = project.folder / path
        file.write_text(file.read_text() + "\n# an edit\n")

    return change


def bump(package: str) -> Change:
    def change(project: LightProject) -> None:
        assert any(package in group for group in read_groups(project.folder).values())
        write_version(project.folder, package, "99.0")

    return change


def lose(path: str) -> Change:
    return lambda project: (project.folder / path).unlink()


def touch(path: str) -> Change:
    return lambda project: (project.folder / path).touch()


def own_setting(project: LightProject) -> None:
    """One more, beside those that the model ships with."""
    settings = project.params()["models"]["second"].get("settings") or {}
    project.set("models.second.settings", settings | {"compensate": {"epochs": 9}})


TORCH = ("corpus", "dense", "capture_dense", "evaluate_dense", *PER_PRUNING, *PER_RATIO)
REPORT = {"report"}
CHANGES: dict[str, tuple[Change, set[str]]] = {
    "nothing": (lambda project: None, set()),
    "corpus": (param("corpus.seed", 7), cells(*ALL) | REPORT),
    "dense": (param("dense.pretrain.seed", 7), cells(*set(ALL) - {"inputs", "corpus"}) | REPORT),
    "prune": (param("prune.damping", 0.02), cells("inputs", *PER_PRUNING, *PER_RATIO) | REPORT),
    "capture": (
        param("capture.max_tokens", 9),
        cells("capture_dense", "capture_pruned", "extract", "probe", *PER_RATIO) | REPORT,
    ),
    "extract": (param("extract.solver", "gram"), cells("extract", "probe", *PER_RATIO) | REPORT),
    "probe": (param("probe.steps", 9), cells("probe", *PER_RATIO) | REPORT),
    "compensate": (param("compensate.epochs", 9), cells(*PER_RATIO) | REPORT),
    "recover": (param("recover.rank", 3), set()),  # none in this grid
    "another recovery method": (
        param("grid.recovery", ["meanshift"]),
        {f"{kind}@{m}-wanda-0.5-meanshift" for kind in ("recover", "evaluate_recovered") for m in MODELS} | REPORT,
    ),
    "evaluate": (
        param("evaluate.batch_size", 9),
        cells("inputs", "evaluate_dense", "evaluate_pruned", "evaluate_restored") | REPORT,
    ),
    "speed": (param("speed.turns", 3), set()),  # none in this grid
    "a ratio that is timed": (param("grid.speed", [0.25]), {f"speed@{m}-wanda-0.5-0.25" for m in MODELS} | REPORT),
    "report": (param("report.decimals", 3), REPORT),
    "a ratio more": (param("grid.head_ratio", [0.1, 0.25, 0.5]), cells(*PER_RATIO, ratios=("0.5",)) | REPORT),
    "a ratio less": (param("grid.head_ratio", [0.1]), REPORT),
    "ratios in another order": (param("grid.head_ratio", [0.25, 0.1]), REPORT),
    "a pruning more": (
        param("grid.pruning", ["wanda-0.5", "wanda-0.6"]),
        cells("inputs", *PER_PRUNING, *PER_RATIO, prunings=("wanda-0.6",)) | REPORT,
    ),
    "another pruning": (
        param("grid.pruning", ["sparsegpt-2of4"]),
        cells("inputs", *PER_PRUNING, *PER_RATIO, prunings=("sparsegpt-2of4",)) | REPORT,
    ),
    "a model more": (param("grid.model", ["tiny", "second", "third"]), cells(*ALL, models=("third",)) | REPORT),
    "a model less": (param("grid.model", ["second"]), REPORT),
    "models in another order": (param("grid.model", ["second", "tiny"]), REPORT),
    "a model's entry": (
        param("models.second.threads", 2),
        cells(*set(ALL) - {"corpus"}, models=("second",)) | REPORT,
    ),
    "a model's own setting of a stage": (
        own_setting,
        cells("inputs", *PER_RATIO, models=("second",)) | REPORT,
    ),
    "an entry outside the grid": (param("models.third.threads", 2), set()),
    "code of prune": (edit("restorelcc/stages/prune/prune.py"), cells("prune")),
    "code of report": (edit("restorelcc/stages/report/tables.py"), REPORT),
    "code of a shared module": (
        edit("restorelcc/models/hooks.py"),
        cells(*TORCH),
    ),
    "code of the command line": (edit("restorelcc/cli/app.py"), set()),
    "code of a flow": (edit("flows/__init__.py"), set()),
    "torch": (bump("torch"), cells(*TORCH)),
    "scikit-learn": (bump("scikit-learn"), cells("corpus")),
    "lm-eval": (bump("lm-eval"), cells("evaluate_dense", "evaluate_pruned", "evaluate_restored")),
    "a lost artifact": (lose("data/tiny/wanda-0.5/heads.parquet"), set()),
    "a touched artifact": (touch("data/tiny/wanda-0.5/heads.parquet"), set()),
}
# Executed for real as well: a grid that grows, code, versions. What is lost comes back from the cache, which DVC's
# status does not say: that row is only executed. tests/flows/test_true.py executes all of them, with true stages.
EXECUTED = ("a ratio more", "code of prune", "scikit-learn", "a lost artifact")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LightProject:
    project = LightProject(tmp_path_factory.mktemp("exact") / "base", GRID, models=3, code=EDITED)
    project.set("grid.model", list(MODELS))
    assert set(project.repro()) == cells(*ALL) | REPORT
    return project


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "a lost artifact"])
def test_dvc_finds_that_a_change_concerns_exactly_what_depends_on_it(
    base: LightProject, tmp_path: Path, name: str
) -> None:
    change, expected = CHANGES[name]
    project = base.copy(tmp_path / "copy")
    change(project)
    assert sorted(project.would_run()) == sorted(expected)


@pytest.mark.parametrize("name", EXECUTED)
def test_a_change_runs_exactly_what_depends_on_it(base: LightProject, tmp_path: Path, name: str) -> None:
    change, expected = CHANGES[name]
    project = base.copy(tmp_path / "copy")
    change(project)
    assert sorted(project.repro()) == sorted(expected)


def test_there_and_back_computes_nothing_and_reports_only_the_grid(base: LightProject, tmp_path: Path) -> None:
    project = base.copy(tmp_path / "copy")
    project.set("grid.model", ["tiny"])
    assert project.repro() == ["report"]
    before = project.artifacts()
    project.set("grid.pruning", ["wanda-0.5", "wanda-0.6"])
    project.repro()
    project.set("grid.pruning", ["wanda-0.5"])
    looked = ["inputs@tiny"]  # which looks at files and computes nothing
    assert project.repro() == [*looked, "report"], "its folder of metrics still held the cell that left"
    project.set("grid.pruning", ["wanda-0.5", "wanda-0.6"])
    assert project.repro() == looked
    project.set("grid.pruning", ["wanda-0.5"])
    assert project.repro() == looked
    after = project.artifacts()
    assert {path: after[path] for path in before} == before


def test_what_a_stage_gave_by_hand_is_its_result_after_dvc_commit_force(base: LightProject, tmp_path: Path) -> None:
    """As docs/models.md says for a stage under a launcher."""
    project, stage = base.copy(tmp_path / "copy"), "compensate@tiny-wanda-0.5-0.1"
    project.set("compensate.epochs", 9)
    project.sh("restorelcc", "compensate", "--model", "tiny", "--pruning", "wanda-0.5", "--head-ratio", "0.1")
    with repo_here(project.folder, project.environment) as repo:
        assert repo.status([stage])
        assert dvc(["commit", "--force", stage]) == 0
        assert not repo.status([stage])


def test_every_change_of_the_brief_is_in_the_table() -> None:
    import yaml

    sections = set(yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())) - {"grid", "models"}
    assert sections <= set(CHANGES)
    assert len(CHANGES) >= 15
