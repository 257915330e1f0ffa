"""What libraries read from the environment is there before the command loads them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from restorelcc.__main__ import DEFAULTS
from tests.dag import ROOT

SHOWN = "import pyarrow; print(pyarrow.default_memory_pool().backend_name)"
(INSTALLED,) = entry_points(group="console_scripts", name="restorelcc")
COMMANDS = {"restorelcc": INSTALLED.value.partition(":")[0], "python -m restorelcc": "restorelcc.__main__"}


def _pool(module: str, **environment: str) -> str:
    """Arrow's allocator after a command that loads it has run in `module`'s main()."""
    code = (
        "import sys\n"
        f"from {module} import main\n"
        "sys.argv = ['restorelcc', 'table', '--params', '/nowhere/params.yaml']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"{SHOWN}\n"
    )
    inherited = {name: value for name, value in os.environ.items() if name not in DEFAULTS}
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env=inherited | environment,
    )
    return done.stdout.split()[-1]


@pytest.mark.parametrize("module", COMMANDS.values(), ids=COMMANDS)
def test_arrow_takes_its_memory_from_the_system(module: str) -> None:
    assert _pool(module) == "system"


def test_what_the_user_has_set_stays() -> None:
    assert _pool(INSTALLED.value.partition(":")[0], ARROW_DEFAULT_MEMORY_POOL="mimalloc") == "mimalloc"


@pytest.mark.parametrize("target", ["repro", "flow", "graph", "share"])
def test_make_refuses_a_folder_without_git_before_it_installs_anything(target: str, tmp_path: Path) -> None:
    for name in ("Makefile", "uv.lock", "pyproject.toml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    done = subprocess.run(
        ["make", target, "PYTHON=false"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "not in a git repository, which DVC needs: clone the project, or run `git init` here" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Makefile", "pyproject.toml", "uv.lock"]
    assert "Setting up" not in done.stdout
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    done = subprocess.run(["make", "in-git"], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0


def test_make_clean_leaves_what_a_server_and_sweeps_keep(tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    kept = [".work/prefect/prefect.db", ".work/sweeps/first/data/report/index.html", "data/tiny/dense/config.json"]
    for name in (*kept, ".work/write-x/file", ".work/.hidden", ".venv/bin/python", "site/index.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")

    def clean() -> str:
        done = subprocess.run(["make", "clean"], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    assert ".work/prefect stays: delete it by hand\n.work/sweeps stays: delete it by hand\n" in clean()
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"Makefile", *kept}
    shutil.rmtree(tmp_path / ".work")
    assert "stays" not in clean()
