"""Files of the project that the grid's entries name: sweeps and jobs run in clones, which have what is committed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.clones import committed_revision
from flows.machines import push_added
from flows.named_files import bring_added, not_committed
from flows.sweep import check_sweep, not_in_sweep, prepare
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.pipeline.params import load_params
from tests.flows.light import LightProject
from tests.flows.user_files import MODEL, user_params, write_user_files

GRID = dict.fromkeys(("model", "pruning", "head_ratio", "recovery"))
NAMED = {
    f"models.{MODEL}.source": "dense",
    f"models.{MODEL}.data.calibration": "calibration.jsonl",
    f"models.{MODEL}.tasks": "tasks",
    "corpus.encoder": "encoder",
    f"prune.external.{MODEL}.theirs.source": "theirs",
    "evaluate.datasets": "copies",
}


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> LightProject:
    """A project whose one model names files by paths in the project; all of them are committed."""
    project = LightProject(tmp_path_factory.mktemp("named") / "project", code=())
    write_user_files(project.folder)
    project.write_params(user_params(project.params(), Path()))
    project.commit("a model of my own")
    return project


@pytest.mark.parametrize("key", NAMED)
def test_what_is_here_and_not_in_a_clone_is_refused_by_its_key(
    key: str, committed: LightProject, tmp_path: Path
) -> None:
    project, text = committed.copy(tmp_path / "project"), NAMED[key]
    assert check_sweep(project.folder, GRID, "sweep", "HEAD") == committed_revision(project.folder)
    project.sh("git", "rm", "-r", "--quiet", "--cached", text)
    project.sh("git", "commit", "--quiet", "--message", "not this")
    with pytest.raises(BadInput) as caught:
        check_sweep(project.folder, GRID, "sweep", "HEAD")
    assert str(caught.value) == (
        f"{key} is {text!r}, which is here, but git does not track it at {committed_revision(project.folder)[:9]}, and "
        "this runs in a clone: give the whole path, or `dvc add` it and commit"
    )


def test_neither_a_folder_named_as_a_hub_id_nor_a_submodule_is_in_a_clone(
    committed: LightProject, tmp_path: Path
) -> None:
    """The hub's model of that id would be computed in place of the folder's."""
    project, source = committed.copy(tmp_path / "project"), "meta-llama/Llama-3.2-1B"
    own = project.folder / source
    own.parent.mkdir()
    (project.folder / "dense").rename(own)
    project.set(f"models.{MODEL}.source", source)
    project.sh("git", "commit", "--quiet", "--all", "--message", "moved")
    refused = rf"models\.{MODEL}\.source is '{source}', which is here, but git does not track it"
    with pytest.raises(BadInput, match=refused):
        check_sweep(project.folder, GRID, "sweep", "HEAD")
    commit = committed_revision(project.folder)
    project.sh("git", "update-index", "--add", "--cacheinfo", f"160000,{commit},{source}")
    project.sh("git", "commit", "--quiet", "--message", "as a submodule")
    with pytest.raises(BadInput, match=refused):
        check_sweep(project.folder, GRID, "sweep", "HEAD")
    project.set(f"models.{MODEL}.source", str(own))
    project.sh("git", "commit", "--quiet", "--all", "--message", "the whole path")
    check_sweep(project.folder, GRID, "sweep", "HEAD")


def test_a_sweep_says_what_it_runs_without(committed: LightProject, tmp_path: Path) -> None:
    project = committed.copy(tmp_path / "project")
    root, commit = project.folder, committed_revision(project.folder)
    params = load_params(root / "params.yaml")
    (root / "notes.txt").write_text("named by nothing")
    (root / "restorelcc" / "__init__.py").write_text("# nor is code")
    assert not_in_sweep(root, params, commit) is None
    (root / "tasks" / "three.yaml").write_text("task: three\n")
    said = not_in_sweep(root, params, commit)
    assert said == f"tasks/three.yaml is not committed: the sweep runs {commit[:9]} without it"
    (root / "calibration.jsonl").write_text('{"text": "edited"}\n')
    (root / "encoder" / "1_Pooling" / "config.json").unlink()
    project.set("report.decimals", 5)
    said = not_in_sweep(root, params, commit)
    names = "params.yaml, calibration.jsonl, encoder/1_Pooling/config.json, tasks/three.yaml"
    assert said == f"{names} are not committed: the sweep runs {commit[:9]} without them"


def test_what_dvc_tracks_is_in_the_clones_of_sweeps_and_jobs(
    committed: LightProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    project, name = committed.copy(tmp_path / "project"), "calibration.jsonl"
    root, file = project.folder, project.folder / name
    project.sh("git", "rm", "--quiet", "--cached", name)

    def add(text: str) -> None:
        file.write_text(text)
        with Repo(str(root)) as repo:
            repo.add(str(file))
        project.commit(text)

    def cloned() -> str:
        return (prepare(root, GRID, "night", check_sweep(root, GRID, "night", "HEAD")) / name).read_text()

    add("first")
    assert cloned() == "first"
    add("second")
    assert cloned() == "second", "in the clone of before"

    params, commit = load_params(root / "params.yaml"), committed_revision(root)
    assert not_committed(params, root, commit) == []
    file.write_text("edited since")
    assert not_committed(params, root, commit) == [name]

    with Repo(str(root)) as repo, repo.config.edit("repo") as config:
        config["remote"]["team"] = {"url": str(tmp_path / "remote")}
    project.commit("a remote")
    push_added(root, "team")
    job = project.clone(tmp_path / "job").folder
    bring_added(params, job, MODEL, "team")
    assert (job / name).read_text() == "second"
    shutil.rmtree(tmp_path / "remote" / "files")
    other = project.clone(tmp_path / "other").folder
    with pytest.raises(
        StageFailed, match=rf"{name}\.dvc could not be checked out .* `dvc push --remote team` where it is"
    ):
        bring_added(params, other, MODEL, "team")
