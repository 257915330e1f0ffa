"""The wheel in an empty environment and an empty folder: everything that a project needs is in it. Minutes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.dag import ROOT

pytestmark = pytest.mark.slow


_UNSET = ("PYTHONPATH", "VIRTUAL_ENV", "RESTORELCC_TABLE", "PYTHONDONTWRITEBYTECODE")


def _run(*command: str | Path, cwd: Path, environment: dict[str, str] | None = None) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in _UNSET}
    done = subprocess.run(
        command, cwd=cwd, env=clean | (environment or {}), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A virtual environment with the wheel alone; the packages that it needs are those of the tests, through a .pth."""
    place = tmp_path_factory.mktemp("wheel")
    for name in ("restorelcc", "flows"):  # a copy: setuptools writes build/ beside the sources
        shutil.copytree(ROOT / name, place / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / "source" / name)
    pip = (sys.executable, "-m", "pip")
    _run(
        *pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", place, place / "source", cwd=place
    )
    _run(sys.executable, "-m", "venv", "--without-pip", place / "venv", cwd=place)
    python = place / "venv" / "bin" / "python"
    _run(*pip, "--python", python, "install", "--quiet", "--no-deps", *place.glob("*.whl"), cwd=place)
    purelib = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip()
    (Path(purelib) / "packages_of_the_tests.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    home = place / "home"
    home.mkdir()
    # The package's command comes first; `dvc` is found in the environment of the tests.
    path = os.pathsep.join((str(python.parent), str(Path(sys.executable).parent), os.environ["PATH"]))
    return {"PATH": path, "HOME": str(home), "DVC_NO_ANALYTICS": "1", "PYTHON": str(python)}


def test_a_project_of_the_wheel_ends_with_the_table(environment: dict[str, str], tmp_path: Path) -> None:
    where = _run(
        environment["PYTHON"],
        "-c",
        "import restorelcc; print(restorelcc.__file__)",
        cwd=tmp_path,
        environment=environment,
    )
    assert str(Path(environment["PYTHON"]).parents[1]) in where, "the package comes from the wheel"
    _run("restorelcc", "init", "demo", cwd=tmp_path, environment=environment)
    output = _run("dvc", "repro", cwd=tmp_path / "demo", environment=environment)
    table = output[output.rindex("recovered %") :]
    for row in ("dense", "pruned", "heads"):
        assert row in table
    assert (tmp_path / "demo" / "data" / "report" / "report.html").is_file()
