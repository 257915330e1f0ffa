"""`python -m flows.sweep`: a grid of models x prunings x head ratios given as parameters, saved as one DVC experiment.

It runs in a clone under .work/sweeps, on the committed revision and with the project's DVC cache: the user's folder
and params.yaml do not change, and results of earlier grids are restored.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows import ROOT
from flows.clones import committed_revision, fresh_clone, git, given_axes, place_in_repository, share_cache, write_grid
from flows.gates import AtLeastOne, Limits
from flows.named_files import bring_added, check_in_clones, not_committed
from flows.restore import command_line, run_grid, run_here, runner_for
from flows.tasks import in_words
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.pipeline.params import Params, load_params
from restorelcc.pipeline.params_file import read_params
from restorelcc.pipeline.renamed import new_option
from restorelcc.pipeline.running import held_lock

LATE_STATE = "Skipped: late"


@flow(name="sweep", flow_run_name="{name}", task_runner=ThreadPoolTaskRunner(), validate_parameters=True)
def sweep(
    models: list[str] | None = None,
    prunings: list[str] | None = None,
    head_ratios: list[int | float | Literal["auto"]] | None = None,
    recoveries: list[str] | None = None,
    name: str = "sweep",
    revision: str = "HEAD",
    skip_when_late_minutes: Annotated[int, Field(ge=0)] = 60,
    parallel: AtLeastOne | None = None,
    gpus: AtLeastOne | None = None,
) -> State:
    """Run a grid and keep it as the DVC experiment `name` of the revision.

    Args:
        models: keys of `models` in params.yaml; left out, any axis is that of params.yaml.
        prunings: for example wanda-0.5, sparsegpt-2of4.
        head_ratios: shares of the heads, for example 0.1, 0.25, or auto.
        recoveries: methods to compare with.
        name: of the experiment; a later sweep of the same name replaces it.
        revision: what to run: a branch, tag or commit.
        skip_when_late_minutes: a scheduled run that could not start for so long is skipped; 0 never skips.
        parallel: stages that run on the CPU at once; by default those whose threads have a core each.
        gpus: stages that run on GPUs at once; by default one per GPU.
    """
    if late := _late_by(skip_when_late_minutes):
        return Cancelled(name=LATE_STATE, message=f"it was due {late} ago; the next run is as scheduled")
    grid = grid_of(models, prunings, head_ratios, recoveries)
    return in_words(run_sweep, ROOT, grid, name, revision, Limits(parallel, gpus))


def grid_of(
    models: list[str] | None,
    prunings: list[str] | None,
    head_ratios: list[int | float | Literal["auto"]] | None,
    recoveries: list[str] | None,
) -> dict[str, Any]:
    """The axes by their names in params.yaml; None for one that is left as it is there."""
    return {"model": models, "pruning": prunings, "head_ratio": head_ratios, "recovery": recoveries}


def run_sweep(root: Path, grid: dict[str, Any], name: str, revision: str, limits: Limits) -> State:
    """The body of the flow: run the grid in the sweep's clone and keep it. Raises BadInput and StageFailed."""
    commit = check_sweep(root, grid, name, revision)
    with held_lock(root / ".work" / "locks" / f"sweep-{name}"):
        clone = prepare(root, grid, name, commit)
        if left_out := not_in_sweep(root, load_params(clone / "params.yaml"), commit):
            get_run_logger().warning(left_out)
        get_run_logger().info("runs in %s", clone)
        state = run_grid(clone, limits)
        if not state.is_completed():
            return state
        keep(root, clone, name)
    return Completed(message=f"{state.message}; experiment {name!r}: dvc exp show, or {clone}/data/report")


def _late_by(minutes: int) -> timedelta | None:
    """How late a scheduled run starts, when that is more than allowed."""
    due = flow_run.scheduled_start_time
    scheduled = "auto-scheduled" in (flow_run.tags or [])
    if not (minutes and due and scheduled):
        return None
    late = datetime.now(UTC) - due
    return timedelta(seconds=round(late.total_seconds())) if late > timedelta(minutes=minutes) else None


def check_sweep(root: Path, grid: dict[str, Any], name: str, revision: str) -> str:
    """The commit to run, once its own params.yaml takes the grid; nothing is cloned yet. Raises BadInput."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise BadInput(f"the sweep's name is {name!r}: use letters, digits, dashes and underscores")
    for axis, values in grid.items():
        if values == [] and axis != "recovery":
            raise BadInput(f"the sweep's axis {axis} is empty: give at least one value, or leave it out")
    commit = committed_revision(root, revision)
    with tempfile.TemporaryDirectory() as folder:
        params = Path(folder) / "params.yaml"
        params.write_text(git(root, "show", f"{commit}:./params.yaml"), encoding="utf-8")
        try:
            given = given_axes(read_params(params), grid)
            asked = load_params(params, tuple(f"grid.{axis}={values}" for axis, values in given.items()))
        except BadInput as error:
            raise BadInput(f"{error} (a sweep runs a committed revision: {revision} is {commit[:9]})") from error
    check_in_clones(asked, root, commit)
    return commit


def not_in_sweep(root: Path, params: Params, commit: str) -> str | None:
    """A sentence where params.yaml, or files that the grid's entries name, are not as in the commit that is checked
    out: it runs as it was committed."""
    if commit != committed_revision(root):
        return None  # another one was asked for
    edited = git(root, "diff", "--name-only", "--relative", "-z", commit, "--", "params.yaml").split("\0")
    found = not_committed(params, root, commit)
    absent = [each.name for each in found if not each.is_in_clone]
    differing = [*filter(None, edited), *(each.name for each in found if each.is_in_clone)]
    sentences = []
    if absent:
        are, them = ("is", "it") if len(absent) == 1 else ("are", "them")
        sentences.append(f"{_listed(absent)} {are} not committed: the sweep runs {commit[:9]} without {them}")
    if differing:
        are, them, they = ("is", "it", "it is") if len(differing) == 1 else ("are", "them", "they are")
        here = f"{_listed(differing)} {are} not committed as {they} here"
        sentences.append(f"{here}: the sweep runs {them} as {they} in {commit[:9]}")
    return "; ".join(sentences) or None


def _listed(names: list[str]) -> str:
    return ", ".join([*names[:5], *([f"{len(names) - 5} more"] if names[5:] else [])])


def prepare(root: Path, grid: dict[str, Any], name: str, commit: str) -> Path:
    """The sweep's clone, with its grid in params.yaml, and with what `dvc add` tracks of what the grid names."""
    top, within = place_in_repository(root)
    clone = fresh_clone(str(top), root / ".work" / "sweeps" / name, commit) / within
    share_cache(clone, _cache_of(root))
    write_grid(clone, grid)
    bring_added(load_params(clone / "params.yaml"), clone)
    return clone


def _cache_of(root: Path) -> Path:
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        return Path(repo.cache.legacy.path)


def keep(root: Path, clone: Path, name: str) -> None:
    """Save the clone as an experiment, and bring it into the project's repository, where `dvc exp show` lists it.

    Of the pipeline that ran: without a target DVC saves every .dvc file and dvc.yaml of the repository, and ends where
    an output of one is not in the clone.
    """
    options = ["--force", "--name", name, "--message", f"sweep {name}", "--include-untracked", "dvc.lock"]
    command = [sys.executable, "-m", "dvc", "exp", "save", *options, "dvc.yaml"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise StageFailed(f"dvc exp save failed in {clone}: {' '.join(done.stderr.split())}")
    # That one alone: the clone still has those that were removed from the project since.
    commit = git(clone, "rev-parse", "HEAD")
    ref = f"refs/exps/{commit[:2]}/{commit[2:]}/{name}"
    git(root, "fetch", "--quiet", str(place_in_repository(clone)[0]), f"+{ref}:{ref}")


def main(
    model: Annotated[list[str] | None, typer.Option("--model", "-m", help="a key of `models`; repeatable")] = None,
    pruning: Annotated[list[str] | None, typer.Option("--pruning", "-p", help="e.g. wanda-0.6; repeatable")] = None,
    head_ratio: Annotated[list[str] | None, typer.Option("--head-ratio", "-r", help="or auto; repeatable")] = None,
    recovery: Annotated[list[str] | None, typer.Option("--recovery", "-b", help="repeatable")] = None,
    name: Annotated[str, typer.Option(help="name of the DVC experiment")] = "sweep",
    revision: Annotated[str, typer.Option(help="branch, tag or commit to run")] = "HEAD",
    parallel: Annotated[int | None, typer.Option(min=1, help="stages on the CPU at once")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="stages on GPUs at once")] = None,
    dask: Annotated[str | None, typer.Option(help="local Dask workers, or a scheduler's address")] = None,
) -> None:
    """Run a grid in a clone and save it as an experiment; axes left out are those of params.yaml."""
    ratios = [_ratio(text) for text in head_ratio or ()]
    axes: dict[str, Any] = {"models": model, "prunings": pruning, "head_ratios": ratios, "recoveries": recovery}
    given = {axis: values or None for axis, values in axes.items()}
    check_sweep(ROOT, grid_of(**given), name, revision)
    raise SystemExit(
        run_here(
            sweep.with_options(task_runner=runner_for(dask)),
            **given,
            name=name,
            revision=revision,
            parallel=parallel,
            gpus=gpus,
        )
    )


def _ratio(text: str) -> int | float | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return int(text) if text.isdecimal() else float(text)  # 1 and 1.0 name different stages
    except ValueError:
        raise BadInput(f"--head-ratio is {text!r}: give a number above 0 and up to 1, or auto") from None


if __name__ == "__main__":
    sys.argv[1:] = map(new_option, sys.argv[1:])
    command_line(main)
