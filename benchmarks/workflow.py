"""`make bench-workflow`: what DVC and Prefect cost on a grid whose stages take no time of their own.

`python -m benchmarks.workflow noop overhead speed` names the parts.

The DAG is the real one, `restorelcc` is the stand-in of tests/flows. Measured are a `dvc repro` that has nothing to do,
by grid size; what a stage costs beyond its own work, by runner; and how much sooner the flow ends than `dvc repro`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import networkx

from restorelcc.workflow.lockfile import merge
from tests.flows.light import LightProject

SIZES = {12: (3, 4), 50: (5, 10), 200: (10, 20)}  # cells: prunings x head ratios
PARALLEL = 2
SECONDS = 3.0  # of every stage, where the speed-up is measured


def grid(prunings: int, ratios: int) -> dict[str, list[str] | list[float]]:
    """A grid of one model."""
    return {
        "pruning": [f"wanda-{0.3 + 0.02 * number:.2f}" for number in range(prunings)],
        "head_ratio": [round(0.02 * (number + 1), 2) for number in range(ratios)],
    }


def computed(project: LightProject) -> int:
    """Compute everything as `dvc repro` would, but write dvc.lock once, which is what takes the time."""
    from dvc.repo import Repo, lock_repo
    from dvc.stage.serialize import to_single_stage_lockfile

    entries = {}
    with Repo(str(project.folder)) as repo, lock_repo(repo):
        os.chdir(project.folder)
        for stage in reversed(list(networkx.topological_sort(repo.index.graph))):
            environment = project.environment | {"DVC_STAGE": stage.addressing}
            subprocess.run(stage.cmd, shell=True, check=True, cwd=project.folder, env=environment)
            stage.save()
            stage.commit()
            entries[stage.addressing] = to_single_stage_lockfile(stage)
    merge(project.folder, entries)
    return len(entries)


def seconds(project: LightProject, *command: str, **environment: str) -> float:
    """Wall time of a command."""
    start = time.perf_counter()
    project.sh(*command, **environment)
    return time.perf_counter() - start


def noop(folder: Path, cells: int) -> None:
    project = LightProject(folder / f"noop-{cells}", grid(*SIZES[cells]))
    stages = computed(project)
    project.sh("dvc", "repro", "--quiet")  # the state database is warm from now on
    before = len(project.executed())
    times = sorted(seconds(project, "dvc", "repro", "--quiet") for _ in range(3))
    flow = seconds(project, sys.executable, "-m", "flows.restore") if cells <= 50 else float("nan")
    assert len(project.executed()) == before, "it was to do nothing"
    print(f"| {cells} | {stages} | {times[1]:.1f} | {flow:.1f} |", flush=True)


def overhead(folder: Path) -> None:
    for name, command in (
        ("dvc repro", ("dvc", "repro", "--quiet")),
        ("flow, 1 at once", (sys.executable, "-m", "flows.restore", "--parallel", "1")),
        ("flow, 2 at once", (sys.executable, "-m", "flows.restore", "--parallel", str(PARALLEL))),
    ):
        project = LightProject(folder / name.replace(" ", "-"), grid(*SIZES[12]))
        empty = LightProject(folder / f"{name}-empty".replace(" ", "-"), grid(1, 1))
        computed(empty)
        start_up = seconds(empty, *command)
        total = seconds(project, *command)
        stages = len(project.executed())
        print(f"| {name} | {stages} | {start_up:.1f} | {(total - start_up) / stages:.2f} |", flush=True)


def speed_up(folder: Path) -> None:
    times = {}
    for name, command in (
        ("dvc repro", ("dvc", "repro", "--quiet")),
        ("flow", (sys.executable, "-m", "flows.restore", "--parallel", str(PARALLEL))),
    ):
        project = LightProject(folder / f"speed-{name}".replace(" ", "-"), grid(2, 3))
        times[name] = seconds(project, *command, STANDIN_SECONDS=str(SECONDS))
    ratio = times["dvc repro"] / times["flow"]
    print(f"dvc repro {times['dvc repro']:.0f} s, flow {times['flow']:.0f} s: {ratio:.2f} times as fast", flush=True)


def main(parts: list[str]) -> None:
    """Print the tables asked for; all without a name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "noop" in parts:
            print("| cells | stages | no-op dvc repro, s | no-op flow, s |\n|---|---|---|---|")
            for cells in SIZES:
                noop(folder, cells)
        if "overhead" in parts:
            print("\n| runner | stages | start, s | s per stage beyond its work |\n|---|---|---|---|")
            overhead(folder)
        if "speed" in parts:
            print(f"\nStages of {SECONDS:g} s, {PARALLEL} at once:")
            speed_up(folder)


if __name__ == "__main__":
    main(sys.argv[1:] or ["noop", "overhead", "speed"])
