"""`make bench-workflow`: what DVC and Prefect cost on a grid whose stages take no time of their own.

`python -m benchmarks.workflow noop-50-cells overhead speed` names the parts; each writes its section of the page.

The DAG is the real one, `restorelcc` is the stand-in of tests/flows. Measured are a `dvc repro` that has nothing to do,
by grid size; what a stage costs beyond its own work, by runner; and how much sooner the flow ends than `dvc repro`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median

import networkx

from benchmarks.results import table, verdict, write_section
from restorelcc.pipeline.lockfile import merge
from tests.flows.light import LightProject
from tests.flows.user_files import MODEL, user_params, write_user_files

SIZES = {"12 cells": (3, 4), "50 cells": (5, 10), "200 cells": (10, 20), "50 stages": (3, 5)}  # prunings x head ratios
SMALL = (2, 3)
PARALLEL = 2
SECONDS = (3.0, 15.0)  # of every stage, where the speed-up is measured
NOOP_SECONDS, STAGE_SECONDS = 3.0, 1.5  # goals
BARE = """stages:
  bare:
    matrix:
      number: ${grid.number}
    cmd: echo ${item.number} > out-${item.number}
    deps:
      - read
    params:
      - grid
    outs:
      - out-${item.number}
"""  # one file read, one written: what DVC takes for a stage whatever it is
FLOW = (sys.executable, "-m", "flows.restore")
RUNNERS = {
    "dvc repro": ("dvc", "repro", "--quiet"),
    "flow, 1 at once": (*FLOW, "--parallel", "1"),
    f"flow, {PARALLEL} at once": (*FLOW, "--parallel", str(PARALLEL)),
}
OWN_BYTES, WEIGHT_BYTES = 100 * 2**20, 500 * 2**20
PAGE = Path(__file__).parents[1] / "docs" / "results" / "workflow.md"


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
    merge(project.folder, json.loads(json.dumps(entries)))  # plain dictionaries of DVC's ordered ones
    return len(entries)


def seconds(project: LightProject, *command: str, **environment: str) -> float:
    """Wall time of a command, with DVC's own parser of dvc.lock: the tests have a faster one."""
    start = time.perf_counter()
    project.sh(*command, **{"PYTHONPATH": str(project.folder)} | environment)
    return time.perf_counter() - start


def noop(folder: Path, prunings: int, ratios: int) -> str:
    """A run that has nothing to do."""
    project = LightProject(folder / "project", grid(prunings, ratios))
    stages = computed(project)
    bare = bare_project(folder / "bare", stages)
    for each in (project, bare):
        each.sh("dvc", "repro", "--quiet")  # the state database is warm from now on
    before = len(project.executed())
    rounds = [[seconds(each, "dvc", "repro", "--quiet") for each in (project, bare)] for _ in range(3)]
    flow = seconds(project, *FLOW)
    assert len(project.executed()) == before, "it was to do nothing"
    repro, of_bare = (median(column) for column in zip(*rounds, strict=True))
    cells = prunings * ratios
    goal = verdict(repro, NOOP_SECONDS, at_least=False) if 50 in (cells, stages) else "-"
    row = [str(cells), str(stages), f"{repro:.1f}", f"{of_bare:.1f}", f"{repro / of_bare:.1f}", f"{flow:.1f}", goal]
    head = [
        "cells",
        "stages",
        "dvc repro, s",
        "bare stages, s",
        "ratio",
        "flow with its own server, s",
        "goal of dvc repro",
    ]
    return table(head, [row])


def own_files(folder: Path) -> str:
    """A run that has nothing to do, of the default grid with a model, tasks and data of a user's own."""
    home = folder / "home"
    write_user_files(home)
    row = json.dumps({"text": "word " * 200}) + "\n"
    for name in ("calibration.jsonl", "heldout.jsonl"):
        (home / name).write_text(row * (OWN_BYTES // 2 // len(row)), encoding="utf-8")
    with (home / "dense" / "model.safetensors").open("wb") as file:
        file.truncate(WEIGHT_BYTES)
    project = LightProject(folder / "project")
    axes = project.params()["grid"]
    project.write_params(user_params(project.params(), home) | {"grid": axes | {"model": [MODEL], "recovery": []}})
    stages = len(project.repro())
    project.sh("dvc", "repro", "--quiet")
    idle = median(seconds(project, "dvc", "repro", "--quiet") for _ in range(3))
    looked = median(seconds(project, sys.executable, "-m", "restorelcc", "inputs") for _ in range(3))
    sizes = [f"{size / 2**20:.0f}" for size in (OWN_BYTES, WEIGHT_BYTES)]
    values = [str(stages), *sizes, f"{idle:.1f}", f"{looked:.1f}", verdict(idle, NOOP_SECONDS, at_least=False)]
    return table(["stages", "data, MiB", "weights, MiB", "dvc repro, s", "restorelcc inputs, s", "goal"], [values])


def bare_project(folder: Path, stages: int) -> LightProject:
    """As many stages as DVC can have with the least to look at, computed."""
    project = LightProject(folder)
    (folder / "dvc.yaml").write_text(BARE, encoding="utf-8")
    (folder / "read").write_text("one file\n", encoding="utf-8")
    project.write_params({"grid": {"number": [str(number) for number in range(stages)]}})
    computed(project)
    return project


def overhead(folder: Path) -> str:
    """What a stage costs beyond its own work: a grid of stages that take none, less a run that has nothing to do."""
    rows = []
    for name, command in RUNNERS.items():
        project = started(folder / name.replace(" ", "-"), command)
        start, before = seconds(project, *command), len(project.executed())
        grow(project)
        stages_seconds = seconds(project, *command) - start
        stages = len(project.executed()) - before
        each = stages_seconds / stages
        goal = "-" if name == "dvc repro" else verdict(each, STAGE_SECONDS, at_least=False)
        rows.append([name, str(stages), f"{start:.1f}", f"{each:.2f}", goal])
    return table(["runner", "stages", "start and end, s", "s per stage", "goal"], rows)


def speed(folder: Path) -> str:
    """The flow against `dvc repro` where stages take time, which sleeping stages do without taking a core."""
    rows = []
    for of_stage in SECONDS:
        times = []
        for number, command in enumerate((RUNNERS["dvc repro"], RUNNERS[f"flow, {PARALLEL} at once"])):
            project = started(folder / f"speed-{of_stage:g}-{number}", command)
            before = len(project.executed())
            grow(project)
            times.append(seconds(project, *command, STANDIN_SECONDS=str(of_stage)))
            stages = len(project.executed()) - before
        repro, flow = times
        rows.append([str(stages), f"{of_stage:g}", f"{repro:.0f}", f"{flow:.0f}", f"{repro / flow:.2f}"])
    return table(["stages", "seconds each", "dvc repro, s", f"flow, {PARALLEL} at once, s", "times as fast"], rows)


def grow(project: LightProject) -> None:
    """From one cell to six."""
    for axis, values in grid(*SMALL).items():
        project.set(f"grid.{axis}", values)


def started(folder: Path, command: tuple[str, ...]) -> LightProject:
    """One cell, computed, after a first run that had nothing to do but to make what is made once: databases."""
    project = LightProject(folder, grid(1, 1))
    computed(project)
    project.sh(*command)
    return project


def measured() -> str:
    """When, with what and on what."""
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d} with DVC {version('dvc')}, Prefect {version('prefect')} and Python "
        f"{platform.python_version()}, on {os.cpu_count()} CPU cores."
    )


DESCRIPTIONS = {
    "noop": "Everything is computed, nothing has changed; median of three runs. A cell is a pruning with a head ratio, "
    "of one model; a flow starts and ends a Prefect server of its own. Bare: as many stages with one file read, one "
    "parameter and one file written, in turns with ours: DVC's own floor.",
    "own": "The default grid with a model, tasks and data of a user's own, outside the project: everything is "
    "computed, nothing has changed; median of three runs. DVC knows the digests of files by size, time and inode.",
    "overhead": "One cell grows to six whose stages take no time; less a run that has nothing to do, by the stages "
    "that ran. The flow starts and ends a Prefect server of its own.",
    "speed": "One cell grows to six; stages that wait, and so leave the cores to the runners.",
}
PARTS = {
    **{
        f"noop-{size.replace(' ', '-')}": (f"Nothing to do, {size}", partial(noop, prunings=prunings, ratios=ratios))
        for size, (prunings, ratios) in SIZES.items()
    },
    "own-files": ("Nothing to do, files of one's own", own_files),
    "overhead": ("Overhead per stage", overhead),
    "speed": ("Stages side by side", speed),
}


def main(parts: list[str]) -> None:
    """Measure the parts asked for, all without a name; each writes its section of docs/results/workflow.md."""
    for part in parts or PARTS:
        title, measure = PARTS[part]
        with tempfile.TemporaryDirectory() as folder:
            body = measure(Path(folder))
        print(f"{title}\n\n{body}\n", flush=True)
        write_section(PAGE, part, title, f"{DESCRIPTIONS[part.partition('-')[0]]}\n\n{measured()}\n\n{body}")


if __name__ == "__main__":
    main(sys.argv[1:])
