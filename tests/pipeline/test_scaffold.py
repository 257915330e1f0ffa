"""Projects of the installed package: the repository's pipeline, on digests of the code in place of the code."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from restorelcc.base.errors import BadInput
from restorelcc.cli.app import app
from restorelcc.pipeline import versions
from restorelcc.pipeline.params import Params, load_params
from restorelcc.pipeline.scaffold import code_folders, init_scratch, template, write_project
from restorelcc.pipeline.versions import GROUPS, changed_code, check_versions, read_groups, write_versions
from tests.dag import PACKAGE, ROOT

COPIES = {"dvc": "dvc.yaml", "dvcignore": ".dvcignore"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `restorelcc init` makes, where there is no repository yet."""
    folder = tmp_path_factory.mktemp("init") / "mine"
    done = CliRunner().invoke(app, ["init", str(folder)], catch_exceptions=False)
    assert done.exit_code == 0
    assert [line.split("#")[0].strip() for line in done.output.splitlines()[1:]] == [
        "restorelcc check",
        "restorelcc versions",
        "dvc repro",
    ]
    return folder


@pytest.mark.parametrize("name", COPIES)
def test_what_the_package_carries_is_the_repositorys(name: str) -> None:
    file = COPIES[name]
    assert template(name) == (ROOT / file).read_text(), f"cp {file} restorelcc/pipeline/project/{name}.template"


def test_the_groups_of_packages_are_the_repositorys() -> None:
    assert {group: set(packages) for group, packages in GROUPS.items()} == {
        group: set(packages) for group, packages in read_groups(ROOT).items()
    }


def test_the_pipeline_is_the_same_on_digests_of_the_code(project: Path) -> None:
    own, ours = (yaml.safe_load((folder / "dvc.yaml").read_text()) for folder in (project, ROOT))
    text = yaml.safe_dump(ours).replace("- restorelcc/", "- versions/code/")
    assert own == yaml.safe_load(text) and own["plots"]
    for stage in own["stages"].values():
        for dep in stage["deps"]:
            assert dep.startswith(("versions/", "data/"))
            assert dep.startswith("data/") or (project / dep).is_file()
    assert all((PACKAGE / folder).is_dir() for folder in code_folders())


def test_its_settings_are_the_shipped_ones(project: Path) -> None:
    own, ours = (load_params(folder / "params.yaml") for folder in (project, ROOT))
    for section in set(Params.model_fields) - {"models"}:
        assert getattr(own, section) == getattr(ours, section), section
    assert own.models["tiny"] == ours.models["tiny"]


def test_its_deployments_are_the_shipped_ones_by_module(project: Path) -> None:
    own, ours = (yaml.safe_load(path.read_text()) for path in (project / "prefect.yaml", ROOT / "flows/prefect.yaml"))
    for entry in ours["deployments"]:
        entry["entrypoint"] = entry["entrypoint"].replace(".py:", ".").replace("/", ".")
    assert own == ours


def test_dvc_and_git_take_it(project: Path) -> None:
    from dvc.repo import Repo

    with Repo(str(project)) as repo:
        assert repo.config["core"]["analytics"] is False
        status = repo.status()
    stages = {name.rpartition(":")[2].partition("@")[0] for name in status}  # with a path from where tests run
    assert stages >= {"inputs", "corpus", "prune", "compensate", "report"}
    listed = subprocess.run(
        ["git", "status", "--short", "--untracked-files=all"], cwd=project, capture_output=True, text=True, check=True
    )
    assert {"dvc.yaml", "params.yaml", "versions/code/base", ".dvc/config"} <= {
        line[3:] for line in listed.stdout.splitlines()
    }
    assert not [line for line in listed.stdout.splitlines() if "data/" in line or ".dvc/tmp" in line]


def test_an_edit_of_installed_code_makes_stale_what_uses_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = versions.code_digest
    monkeypatch.setattr(versions, "code_digest", lambda folder: "0" if folder == "stages/prune" else real(folder))
    assert list(changed_code(project)) == ["stages/prune"]
    with pytest.raises(BadInput, match=r"restorelcc/stages/prune is not that of versions/code: run `restorelcc versio"):
        check_versions(project)
    before = {path: path.stat().st_mtime_ns for path in (project / "versions").rglob("*") if path.is_file()}
    assert write_versions(project) == ["versions: the code of restorelcc/stages/prune changed"]
    check_versions(project)
    after = {path: path.stat().st_mtime_ns for path in (project / "versions").rglob("*") if path.is_file()}
    assert [path.name for path in before if after[path] != before[path]] == ["prune"]
    users = [name for name, stage in _stages(project).items() if "versions/code/stages/prune" in stage["deps"]]
    assert users == ["prune"]
    monkeypatch.undo()
    assert write_versions(project) == ["versions: the code of restorelcc/stages/prune changed"]


def test_a_full_disk_leaves_the_files_of_a_project_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty params.yaml would be taken for that of another project."""
    write_project(tmp_path, "one: 1\n")

    def full(path: Path, *_: object, **__: object) -> int:
        path.write_bytes(b"")  # opening a file to write it empties it
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            write_project(tmp_path, "two: 2\n")
    assert (tmp_path / "params.yaml").read_text() == "one: 1\n"
    assert not list(tmp_path.glob(".params*"))
    (tmp_path / "params.yaml").chmod(0o600)
    write_project(tmp_path, "three: 3\n")
    assert (tmp_path / "params.yaml").stat().st_mode & 0o777 == 0o600
    (tmp_path / "params.yaml").rename(tmp_path / "elsewhere.yaml")
    (tmp_path / "params.yaml").symlink_to("elsewhere.yaml")
    write_project(tmp_path, "two: 2\n")
    assert (tmp_path / "params.yaml").is_symlink() and (tmp_path / "elsewhere.yaml").read_text() == "two: 2\n"


def test_a_digest_is_of_names_and_content_and_not_of_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_PACKAGE", tmp_path)
    (tmp_path / "base" / "__pycache__").mkdir(parents=True)
    (tmp_path / "base" / "a.py").write_text("1")
    first = versions.code_digest("base")
    (tmp_path / "base" / "__pycache__" / "a.cpython-311.pyc").write_text("x")
    assert versions.code_digest("base") == first
    (tmp_path / "base" / "a.py").write_text("2")
    second = versions.code_digest("base")
    (tmp_path / "base" / "a.py").rename(tmp_path / "base" / "b.py")
    assert len({first, second, versions.code_digest("base")}) == 3
    with pytest.raises(BadInput, match="versions/code/gone belongs to a folder that the installed restorelcc does not"):
        versions.code_digest("gone")


def test_a_repository_that_is_there_is_used_and_its_ignore_files_added_to(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    folder = tmp_path / "sub"
    folder.mkdir()
    (folder / ".gitignore").write_text("secrets\n__pycache__/\n")
    assert CliRunner().invoke(app, ["init", str(folder)], catch_exceptions=False).exit_code == 0
    assert not (folder / ".git").exists() and (folder / ".dvc" / "config").is_file()
    lines = (folder / ".gitignore").read_text().splitlines()
    assert lines[:2] == ["secrets", "__pycache__/"] and "/data/*" in lines and lines.count("__pycache__/") == 1
    for name in ("dvc.yaml", "params.yaml"):
        other = tmp_path / name.partition(".")[0]
        other.mkdir()
        (other / name).touch()
        with pytest.raises(BadInput, match=f"already has {name}"):
            CliRunner().invoke(app, ["init", str(other)], catch_exceptions=False)
        assert [path.name for path in other.iterdir()] == [name]


def test_a_repository_that_git_does_not_use_is_no_place_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # as where the folder belongs to somebody else
    with pytest.raises(BadInput, match=r"lies in a git repository that git does not use: .*dubious ownership"):
        CliRunner().invoke(app, ["init", str(tmp_path / "own")], catch_exceptions=False)
    assert not (tmp_path / "own").exists()


def test_an_init_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    there = tmp_path / "there"
    there.mkdir()
    (there / ".gitignore").write_text("mine\n")
    (there / "thesis.txt").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr("restorelcc.pipeline.scaffold.schema_text", full)
        for folder in (there, tmp_path / "new" / "one"):
            with pytest.raises(BadInput, match="cannot be written: No space left on device"):
                CliRunner().invoke(app, ["init", str(folder)], catch_exceptions=False)
    assert not (tmp_path / "new").exists()
    assert {path.name: path.read_text() for path in there.iterdir()} == {".gitignore": "mine\n", "thesis.txt": "mine"}
    assert CliRunner().invoke(app, ["init", str(there)], catch_exceptions=False).exit_code == 0


def test_a_work_folder_is_a_repository_of_its_own_wherever_it_lies(project: Path) -> None:
    from dvc.repo import Repo
    from dvc.scm import NoSCM

    work = project / "work"
    write_project(work, template("params"))
    init_scratch(work)
    init_scratch(work)
    with Repo(str(work)) as repo:
        assert Path(repo.root_dir) == work and isinstance(repo.scm, NoSCM)
        assert repo.cache.local.cache_types == ["hardlink", "copy"]
    with Repo(str(project)) as repo:
        assert {Path(stage.path_in_repo).parent for stage in repo.index.stages} == {Path()}


def _stages(project: Path) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    return found
