"""What `restorelcc plan` says is left to run, in a project whose DAG is real and whose stages are light."""

import json
from pathlib import Path

import pytest
from dvc.repo import lock_repo
from typer.testing import CliRunner

from restorelcc.cli.app import app
from restorelcc.cli.plan_table import to_run_text
from restorelcc.pipeline.left_to_run import CannotTell, finished_of
from restorelcc.pipeline.params import load_params
from restorelcc.pipeline.plan import with_left
from tests.flows.in_process import repo_here
from tests.flows.light import LightProject

GRID = {"pruning": ["wanda-0.5"], "head_ratio": [0.1, 0.25]}
BEFORE = {"corpus@tiny", "dense@tiny", "capture_dense@tiny", "evaluate_dense@tiny"} | {
    f"{kind}@tiny-wanda-0.5" for kind in ("prune", "capture_pruned", "extract", "probe", "evaluate_pruned")
}
AFTER = {f"{kind}@tiny-wanda-0.5-{ratio}" for kind in ("compensate", "evaluate_restored") for ratio in (0.1, 0.25)}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> LightProject:
    return LightProject(tmp_path_factory.mktemp("unfinished") / "project", GRID, code=())


def finished(project: LightProject, *settings: str, pruning: str = "wanda-0.5") -> set[str]:
    with repo_here(project.folder, project.environment):
        return finished_of(Path("params.yaml"), settings, ["tiny"], [pruning])


def test_a_plan_says_what_is_left(project: LightProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("restorelcc.pipeline.plan_rate.matmul_rate", lambda *_, **__: 1e11)
    grid = load_params(project.folder / "params.yaml").grid
    with repo_here(project.folder, project.environment):
        asked = CliRunner().invoke(app, ["plan", "--json"])
    (plan,) = json.loads(asked.stdout)
    assert {to_run_text(row) for row in plan["stages"]} == {"all"}
    assert plan["left"]["seconds"] == pytest.approx(sum(row["seconds"] for row in plan["stages"]))

    project.repro()
    assert finished(project) == BEFORE | AFTER | {"report"}
    done = with_left(plan, grid, finished(project))
    assert {to_run_text(row) for row in done["stages"]} == {"none"}
    assert done["left"] == {"runs": 0, "memory": 0, "gpu_memory": 0, "disk": 0, "seconds": 0}

    # A setting of one stage, wherever it is set: what is downstream runs too, and nothing else.
    assert finished(project, "models.tiny.settings.compensate.epochs=9") == BEFORE
    assert finished(project, "prune.damping=0.5") == {name for name in BEFORE if "wanda" not in name}
    assert finished(project, pruning="wanda-0.6") == {name for name in BEFORE if "wanda" not in name}
    assert finished(project, "grid.head_ratio=[0.25, 0.5]") == BEFORE | {name for name in AFTER if "0.25" in name}
    project.set("compensate.epochs", 9)
    changed = with_left(plan, grid, finished(project))
    left = [row for row in changed["stages"] if row["to_run"]]
    assert [(row["stage"], row["to_run"]) for row in left] == [("compensate", 2), ("evaluate_restored", 2)]
    assert changed["left"]["seconds"] == pytest.approx(sum(row["seconds"] for row in left))
    assert changed["left"]["memory"] == max(row["memory"] for row in left)


def test_part_of_a_row_is_a_count() -> None:
    assert [to_run_text({"runs": 5, "to_run": count}) for count in (0, 2, 5)] == ["none", "2 of 5", "all"]


def test_while_another_command_is_at_work_nobody_knows(project: LightProject) -> None:
    with repo_here(project.folder, project.environment) as repo, lock_repo(repo):
        Path("data/corpus/tiny").mkdir(parents=True, exist_ok=True)
        with pytest.raises(CannotTell, match=r"^another command is at work in \S+$"):
            finished_of(Path("params.yaml"), (), ["tiny"], ["wanda-0.5"])


def test_a_link_to_a_file_that_is_gone_ends_no_plan(project: LightProject, tmp_path: Path) -> None:
    """As where data lay in an environment that was deleted; of several files there is a folder of links."""
    own = project.copy(tmp_path / "own")
    links = own.folder / "data" / "inputs" / "tiny" / "calibration"
    links.unlink()
    links.mkdir()
    (links / "coqa").symlink_to(tmp_path / "gone")
    (own.folder / "data" / "corpus" / "tiny").mkdir(parents=True, exist_ok=True)
    with pytest.raises(CannotTell, match=r"calibration/coqa leads to a file that is not there any more; "):
        finished(own)


def test_without_dvc_all_is_counted_and_one_sentence_says_why(project: LightProject, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text((project.folder / "params.yaml").read_text())
    done = CliRunner().invoke(app, ["plan", "--params", str(tmp_path / "params.yaml"), "--model", "tiny"])
    assert done.exit_code == 0, done.output
    assert "to run" not in done.stdout
    assert f"All stages are counted, whether they are finished or not: {tmp_path} is no project" in done.stdout
    with pytest.raises(CannotTell, match=r"DVC reads params\.yaml, and not other\.yaml"):
        finished_of(tmp_path / "other.yaml", (), ["tiny"], ["wanda-0.5"])
