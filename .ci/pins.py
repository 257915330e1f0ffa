"""Tests at an end of the version ranges in pyproject.toml: `make test-pins END=lowest`, or `END=highest`.

    python .ci/pins.py lowest|highest [TESTS...]

Makes an environment below .work/pins with the lowest (uv's lowest-direct) or the highest versions that the ranges of
the project and of its extras admit, and runs a short choice of tests in it. torch is not a range, and is linked from
the environment that this runs in: its builds are gigabytes. So only one version of torch is ever tried.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESOLUTIONS = {"lowest": "lowest-direct", "highest": "highest"}
# `restore` through DVC, adapters and weights through peft, data files, a new project, Prefect and its server. None has
# this repository's versions/, which says other versions than these.
TESTS = (
    "tests/cli/test_output.py",
    "tests/release/export/test_methods.py",
    "tests/stages/corpus/test_reading.py",
    "tests/pipeline/test_scaffold.py",
    "tests/pipeline/test_restore.py",
    "tests/flows/test_gates.py",
    "tests/flows/test_restore.py::test_bad_input_ends_before_anything_starts",
)
OF_THE_TESTS = ("hypothesis", "jsonschema", "packaging", "pandas", "pytest")  # as they are here
TORCH_NEEDS = ["filelock", "fsspec", "jinja2", "networkx", "sympy>=1.13.3", "typing-extensions>=4.10"]
LINKED = ("torch", "torchgen", "functorch", "torch.libs")


def requirements(project: dict[str, object], folder: Path) -> Path:
    """A pyproject.toml with the project's ranges alone, and what torch needs beside its libraries for GPUs."""
    listed = [*project["dependencies"], *(f"{name}=={version(name)}" for name in OF_THE_TESTS)]  # type: ignore[misc]
    for extra in ("s3", "ssh", "dask", "gguf"):
        listed += project["optional-dependencies"][extra]  # type: ignore[index]
    (torch,) = (each.partition("==")[2] for each in listed if each.startswith("torch=="))
    text = f'[project]\nname = "pins"\nversion = "0"\nrequires-python = ">=3.11"\ndependencies = {listed!r}\n'
    text += f'[[tool.uv.dependency-metadata]]\nname = "torch"\nversion = "{torch}"\nrequires-dist = {TORCH_NEEDS!r}\n'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder / "pyproject.toml"


def _uv(folder: Path, *arguments: str | Path) -> None:
    subprocess.run(["uv", "--quiet", "--directory", folder, *arguments], check=True)


def environment(end: str) -> Path:
    """Its interpreter, once all packages are there."""
    folder = ROOT / ".work" / "pins" / end
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked, listed, venv = requirements(content["project"], folder), folder / "requirements.txt", folder / "venv"
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    resolved = ("--resolution", RESOLUTIONS[end], "--python-version", own, "--no-emit-package", "torch")
    _uv(folder, "pip", "compile", asked.name, *resolved, "--output-file", listed.name)
    _uv(folder, "venv", "--allow-existing", "--python", sys.executable, venv.name)
    python = venv / "bin" / "python"
    _uv(folder, "pip", "sync", "--python", python, listed.name)
    _uv(folder, "pip", "install", "--python", python, "--no-deps", "--no-build-isolation", "--editable", ROOT)
    here, there = Path(sysconfig.get_path("purelib")), venv / "lib" / f"python{own}" / "site-packages"
    for path in [*(here / name for name in LINKED), *here.glob("torch-*.dist-info")]:
        if path.exists() and not (there / path.name).exists():
            (there / path.name).symlink_to(path)
    return python


def main() -> int:
    end, *tests = sys.argv[1:] or [""]
    if end not in RESOLUTIONS:
        print(__doc__, file=sys.stderr)
        return 2
    python = environment(end)
    bare = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    command = [python, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", "-m", "not slow", *(tests or TESTS)]
    return subprocess.run(command, cwd=ROOT, env=bare | {"PATH": path, "PYTHONPATH": str(ROOT)}, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
