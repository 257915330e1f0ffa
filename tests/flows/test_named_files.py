"""Files of the project that the grid's entries name: sweeps and jobs run in clones, which have what is committed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows import named_files
from flows.clones import committed_revision, git
from flows.machines import push_added
from flows.named_files import Place, Uncommitted, added_files, bring_added, not_committed
from flows.sweep import check_sweep, not_in_sweep, prepare
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.pipeline.added import Added
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
        "this runs in a clone: `git add` or `dvc add` it and commit; the whole path does where clones are on this "
        "machine"
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
    names = "params.yaml, calibration.jsonl, encoder/1_Pooling/config.json"
    assert said == (
        f"tasks/three.yaml is not committed: the sweep runs {commit[:9]} without it; {names} are not committed as they "
        f"are here: the sweep runs them as they are in {commit[:9]}"
    )

    top = tmp_path / "top"
    top.mkdir()
    root.rename(top / "project")
    (top / "project" / ".git").rename(top / ".git")
    git(top, "add", "--all")
    git(top, "-c", "user.name=T", "-c", "user.email=t@localhost", "commit", "--quiet", "--message", "a folder of it")
    (top / "project" / "params.yaml").write_text("{}")
    commit = committed_revision(top)
    said = not_in_sweep(top / "project", params, commit)
    assert said == f"params.yaml is not committed as it is here: the sweep runs it as it is in {commit[:9]}"


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
    told = f"`{name}` is not what {name}.dvc names: run `dvc add {name}` and commit it"
    assert not_committed(params, root, commit) == [Uncommitted(name, True, told)]
    file.write_text("first")
    told = f"`{name}` is another version than {name}.dvc names: run `dvc checkout {name}.dvc`"
    assert not_committed(params, root, commit) == [Uncommitted(name, True, told)]

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


def test_a_shard_that_was_removed_is_removed_from_a_clone_of_before(committed: LightProject, tmp_path: Path) -> None:
    """Git leaves a file that `dvc add` tracked; what a link leads to outside the clone is not the clone's."""
    clone, outside = committed.copy(tmp_path / "clone"), tmp_path / "outside" / "config.json"
    (clone.folder / "shards" / "deep").mkdir(parents=True)
    (clone.folder / "shards" / "1.jsonl").write_text('{"text": "one"}\n')
    outside.parent.mkdir()
    outside.write_text("{}")
    (clone.folder / "linked").symlink_to("../outside")
    clone.set(f"models.{MODEL}.data.calibration", "shards")
    clone.set("corpus.encoder", "linked")
    clone.commit("shards")
    (clone.folder / "shards" / "deep" / "2.jsonl").write_text('{"text": "two"}\n')
    bring_added(load_params(clone.folder / "params.yaml"), clone.folder)
    assert [path.name for path in (clone.folder / "shards").iterdir()] == ["1.jsonl"]
    assert outside.exists()


def test_what_added_tasks_refer_to_comes_to_the_clone_too(
    committed: LightProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    project = committed.copy(tmp_path / "project")
    root = project.folder
    for name, text in (
        ("own/one.yaml", "include: ../shared/base.yaml\ndataset_kwargs: {data_files: {test: rows/*.jsonl}}\n"),
        ("shared/base.yaml", "output_type: multiple_choice\n"),
        ("rows/items.jsonl", "{}\n"),
        ("rows/huge.bin", "read by nothing"),
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    project.set(f"models.{MODEL}.tasks", ["own"])
    with Repo(str(root)) as repo:
        repo.add([str(root / name) for name in ("own", "shared/base.yaml", "rows/items.jsonl", "rows/huge.bin")])
    project.commit("tasks of DVC")
    params = load_params(root / "params.yaml")
    assert added_files(params, root) == ["own.dvc", "rows/items.jsonl.dvc", "shared/base.yaml.dvc"], "what is pushed"

    def dvc(folder: Path, *arguments: str, remote: str | None = None) -> int:
        with Repo(str(folder)) as repo:
            repo.checkout([str(folder / name) for name in arguments if name.endswith(".dvc")], force=True)
        return 0

    monkeypatch.setattr(named_files, "dvc", dvc)
    clone = prepare(root, GRID, "night", check_sweep(root, GRID, "night", "HEAD"))
    there = ("own/one.yaml", "rows/items.jsonl", "shared/base.yaml")
    assert all((clone / name).is_file() for name in there)
    assert not (clone / "rows/huge.bin").exists()


def test_a_committed_link_counts_where_it_leads_to_the_same_in_a_clone(committed: LightProject, tmp_path: Path) -> None:
    project = committed.copy(tmp_path / "project")
    dense = project.folder / "dense"

    def lead_to(target: Path, text: Path | str) -> None:
        target.parent.mkdir(exist_ok=True)
        dense.resolve().rename(target)
        dense.unlink(missing_ok=True)
        dense.symlink_to(text)
        project.commit(f"to {text}")

    lead_to(tmp_path / "store" / "dense", "../store/dense")
    with pytest.raises(BadInput, match=rf"models\.{MODEL}\.source is .dense., which is here, but git does not"):
        check_sweep(project.folder, GRID, "sweep", "HEAD")
    lead_to(tmp_path / "store" / "other", tmp_path / "store" / "other")
    check_sweep(project.folder, GRID, "sweep", "HEAD")
    lead_to(project.folder / "kept" / "dense", "kept/dense")
    check_sweep(project.folder, GRID, "sweep", "HEAD")
    params, commit = load_params(project.folder / "params.yaml"), committed_revision(project.folder)
    assert not_committed(params, project.folder, commit) == []
    (dense / "config.json").write_text('{"edited": true}')
    assert not_committed(params, project.folder, commit) == [Uncommitted("dense/config.json", True)]


def test_a_pattern_names_what_it_matches_and_not_all_of_its_folder() -> None:
    root = Path("/home/runs[1]/project")
    record = root / "any.dvc"

    def concerned(text: str, path: str, *, is_folder: bool = False) -> bool:
        return Place(root / text, root).concerns(Added(root / path, record, is_folder))

    assert concerned("data/*.jsonl", "data/a.jsonl")
    assert not concerned("data/*.jsonl", "data/huge.bin")
    assert concerned("data/*.jsonl", "data", is_folder=True)
    assert concerned("data/*/a.jsonl", "data/en", is_folder=True)
    assert concerned("data/**/a.jsonl", "data/en/de/a.jsonl")
    assert not concerned("data/**/a.jsonl", "data/en/huge.bin")
    assert not concerned("pairs.jsonl", "data/huge.bin"), "a [ above the project is none of the pattern's"
    assert concerned("pairs.jsonl", "pairs.jsonl")


def test_files_that_nothing_reads_or_that_whole_paths_name_need_no_commit(
    committed: LightProject, tmp_path: Path
) -> None:
    project = committed.copy(tmp_path / "project")
    root, commit = project.folder, committed_revision(project.folder)
    for name in ("dense/optimizer.pt", "dense/README.md", "theirs/optimizer.pt", "encoder/model.onnx"):
        (root / name).write_text("read by nothing")
    (root / "tasks" / "whole.yaml").write_text(f"dataset_kwargs: {{data_files: {{test: {root}/whole.jsonl}}}}\n")
    (root / "tasks" / "named.yaml").write_text("dataset_kwargs: {data_files: {test: named.jsonl}}\n")
    for name in ("whole.jsonl", "named.jsonl"):
        (root / name).write_text("{}\n")
    project.sh("git", "add", "tasks")
    project.sh("git", "commit", "--quiet", "--message", "tasks alone")
    params, commit = load_params(root / "params.yaml"), committed_revision(root)
    assert not_committed(params, root, commit) == [Uncommitted("named.jsonl", False)]
    (root / "dense" / "vocab.json").write_text("{}")
    assert [each.name for each in not_committed(params, root, commit)] == ["dense/vocab.json", "named.jsonl"]


def test_an_older_revision_may_have_other_names_and_names_need_be_no_text(
    committed: LightProject, tmp_path: Path
) -> None:
    project = committed.copy(tmp_path / "project")
    (project.folder / os.fsdecode(b"caf\xe9.txt")).write_text("named by nothing")
    project.sh("git", "mv", "copies/arc_easy/validation.jsonl", "copies/arc_easy/test.jsonl")
    project.commit("another name, and one in Latin-1")
    for revision in ("HEAD", "HEAD~1"):
        assert check_sweep(project.folder, GRID, "sweep", revision) == committed_revision(project.folder, revision)
    params, commit = load_params(project.folder / "params.yaml"), committed_revision(project.folder)
    assert not_committed(params, project.folder, commit) == []
