"""The benchmark of a GPU, at a tiny shape on the CPU, where nothing is installed but the three packages it names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from tests.dag import ROOT


def _with_requirements(names: tuple[str, ...]) -> dict[str, list[Path]]:
    """Name of every package that these need, themselves among them, to what it has installed."""
    found: dict[str, list[Path]] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        found[name] = [Path(str(package.locate_file(file))) for file in package.files or ()]
        needed = map(Requirement, package.requires or ())
        waiting += [need.name for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def _bare_environment(folder: Path) -> set[str]:
    """Links in `folder` to these packages alone; returns their names."""
    home = Path(str(distribution("torch").locate_file("")))
    found = _with_requirements(("torch", "transformers", "safetensors"))
    for files in found.values():
        inside = {file.relative_to(home).parts[0] for file in files if file.is_relative_to(home)}
        for top in inside - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(home / top)
    return set(found)


def test_the_benchmark_runs_with_torch_transformers_and_safetensors_alone(tmp_path: Path) -> None:
    packages = _bare_environment(tmp_path)
    assert {"torch", "transformers", "safetensors"} <= packages and not {"accelerate", "pyarrow", "datasets"} & packages
    sizes = ["--samples", "8", "--train", "8", "--sequences", "4", "--length", "64", "--slice", "8"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        # -S: no site-packages but the links
        [sys.executable, "-S", "-m", "benchmarks.gpu_restore", "--size", "tiny", "--device", "cpu", *sizes],
        cwd=ROOT, env=environment | {"PYTHONPATH": f"{ROOT}:{tmp_path}"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in done.stdout.splitlines() if "|" in line}
    expected = ("capture dense", "prune sparsegpt-2of4", "prune wanda-0.5", "capture pruned", "extract", "probe")
    for name in (*expected, "compensate, 3 epochs", "fold", "straightforward, 8 samples", "straightforward, 1 steps"):
        assert float(rows[name][0].replace(",", "")) >= 0, name
    assert re.search(r"^capture to fold: [\d.,]+ s$", done.stdout, re.MULTILINE)
    assert re.match(r"\d{4}-\d\d-\d\d: CPU, torch \S+, transformers \S+$", done.stdout.splitlines()[0])
