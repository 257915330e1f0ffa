"""`python -m flows.machines`: one job per model on any worker, each in its own clone, sharing a remote.

The head runs the stages that models share, starts a job per model, merges their dvc.lock entries by stage name (merging
the text conflicts), and runs the stage that needs all models: the report. Pushed results are never computed again.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import Cancelling, Crashed, Failed
from pydantic import Field

from flows import ROOT
from flows.clones import committed_revision, git, place_in_repository
from flows.dag import Dag
from flows.gates import AtLeastOne, Limits
from flows.model_job import published_lock, subset
from flows.named_files import added_files, check_in_clones, not_committed
from flows.restore import command_line, planned, run_here, run_stages
from flows.tasks import in_words
from restorelcc.base.documents import read_yaml
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.names import check_without_credentials, without_credentials
from restorelcc.pipeline.lockfile import merge, read_lock
from restorelcc.pipeline.params import load_params
from restorelcc.pipeline.remotes import check_remote, remote_name
from restorelcc.pipeline.watched import dvc

DEPLOYMENT = "model-job/machines"
METRICS = "data/metrics"  # all that the head needs of the models
_POLL_SECONDS = 2.0
_CANCELS, _CANCEL_SECONDS = 3, 60.0  # how often a worker is asked to end a job that takes too long, and how long it has
_CODE = ["dvc.yaml", "params.yaml", "restorelcc", "flows", "versions", ".dvc/config", ".dvcignore"]
_FOR_PEOPLE = ["docs", "tests", "*.md", "LICENSE*"]  # edits of these change no result, unless dvc.yaml names them


@flow(name="machines", validate_parameters=True)
def machines(
    repository: str | None = None,
    remote: str | None = None,
    deployment: str = DEPLOYMENT,
    job_hours: Annotated[float, Field(gt=0)] = 48,
    parallel: AtLeastOne | None = None,
    commit: bool = True,
) -> State:
    """Run the committed grid on all workers of a pool.

    Args:
        repository: where workers clone from; by default this folder's git remote `origin`, or the folder itself.
        remote: the DVC remote to share; by default the default one.
        deployment: the job's deployment, as `prefect deploy` named it.
        job_hours: a job that runs longer is cancelled.
        parallel: stages on a worker's CPU at once; by default those whose threads have a core each.
        commit: commit dvc.lock at the end.
    """
    job = {"repository": repository or origin(ROOT), "parallel": parallel}
    return in_words(run_machines, ROOT, job, remote, deployment, job_hours, commit)


def run_machines(
    root: Path, job: dict[str, Any], remote: str | None, deployment: str, hours: float, commit: bool
) -> State:
    """The body of the flow. Raises BadInput and StageFailed."""
    check_without_credentials("repository", job["repository"])
    with planned(root) as dag:
        name = check_machines(root, remote, commit=commit)
        _check_deployment(deployment, root)
        return _run_waves(dag, root, job, name, deployment, hours, commit)


def _run_waves(
    dag: Dag, root: Path, job: dict[str, Any], name: str, deployment: str, hours: float, commit: bool
) -> State:
    """What models share, here; every model by a job of its own; what needs several models, here again."""
    top, within = place_in_repository(root)
    if job["repository"] == str(root):
        job["repository"] = str(top)
    if within != Path():
        job["folder"] = str(within)
    limits = Limits(job["parallel"])
    shared, per_model, rest = waves(dag)
    if shared:
        state = run_stages(subset(dag, shared), root, limits)
        if not state.is_completed():
            return state
        _push(root, name, shared)
    clean = dag.clean()
    changed = [model for model, stages in per_model.items() if not stages <= clean]
    if changed:
        push_added(root, name)
    job |= {"revision": committed_revision(root), "remote": name}
    ended = _run_jobs(deployment, [job | {"model": model} for model in changed], hours)
    completed = [run.id for run in ended.values() if run.state and run.state.is_completed()]
    for run_id in completed:
        merge_entries(root, published_lock(run_id))
    if len(completed) < len(ended):
        told = [f"{model}: {_said(run)}" for model, run in ended.items() if run.id not in completed]
        return Failed(message=f"{len(told)} of {len(ended)} jobs did not complete. {'; '.join(told)}")
    _pull(root, name, {needed for stage in dag.stages if stage.name in rest for needed in stage.needs} - rest)
    state = run_stages(subset(dag, rest), root, limits)
    if state.is_completed():
        _push(root, name, rest)
        if commit:
            _commit(root)
    return state


def waves(dag: Dag) -> tuple[set[str], dict[str, set[str]], set[str]]:
    """Names of stages: those that models share, those of each model, and those that need several models."""
    per_model: dict[str, set[str]] = {}
    for stage in dag.stages:
        if stage.model:
            per_model.setdefault(stage.model, set()).add(stage.name)
    shared: set[str] = set()
    for stage in reversed(dag.stages):
        wanted = stage.name in shared or stage.model is not None
        shared |= {name for name in stage.needs if wanted}
    owned = set().union(*per_model.values())
    shared -= owned
    return shared, per_model, {stage.name for stage in dag.stages} - owned - shared


def check_machines(root: Path, remote: str | None, *, commit: bool = False) -> str:
    """The remote's name, after all checks: workers run committed revisions, so all that their stages may read must be
    committed; and git must know who commits, where dvc.lock is to be committed at the end."""
    from dvc.repo import Repo

    params, revision = load_params(root / "params.yaml"), committed_revision(root)
    changed = git(root, "status", "--porcelain", "-z", "--", *_CODE, *read_by_stages(root))
    apart = [f":(exclude){name}" for name in ("dvc.lock", *_FOR_PEOPLE)]
    changed = changed or git(root, "status", "--porcelain", "-z", "--untracked-files=no", "--", ".", *apart)
    check_in_clones(params, root, revision)
    told = "{} is not committed, but workers run committed revisions: commit it first"
    if changed:
        first = changed.split("\0")[0].lstrip().partition(" ")[2].strip()  # after its state in one or two letters
        raise BadInput(told.format(first))
    if differing := not_committed(params, root, revision):
        raise BadInput(differing[0].sentence or told.format(differing[0].name))
    if commit:
        try:
            git(root, "var", "GIT_COMMITTER_IDENT")
        except StageFailed as error:
            raise BadInput(
                f"dvc.lock could not be committed at the end ({error}): set user.name and user.email, or "
                "give --no-commit"
            ) from error
    with Repo(str(root), _wait_for_lock=True) as repo:
        name = remote_name(repo.config, remote)
        check_remote(repo, name, writes=True)
    return name


def read_by_stages(root: Path) -> list[str]:
    """The files and folders of the repository that dvc.yaml names as what stages read, seen from the project's folder.
    Those that it names by cell are results, or links to what an entry of the grid names."""
    top, root = place_in_repository(root)[0], root.resolve()
    found = set()
    for each in read_yaml(root / "dvc.yaml")["stages"].values():
        stage = each.get("do", each)  # of a `foreach`
        params = [file for entry in stage.get("params", []) if isinstance(entry, dict) for file in entry]
        found |= {root / stage.get("wdir", "") / file for file in (*stage.get("deps", []), *params)}
    paths = [os.path.relpath(path, root) for path in found if Path(os.path.normpath(path)).is_relative_to(top)]
    return sorted(path for path in paths if "${" not in path)


def _check_deployment(name: str, root: Path) -> None:
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(name)
        except ObjectNotFound:
            shipped = "--prefect-file flows/prefect.yaml " if (root / "flows/prefect.yaml").is_file() else ""
            raise BadInput(
                f"the Prefect server knows no deployment {name!r}: deploy it with "
                f"`prefect --no-prompt deploy {shipped}--all`"
            ) from None


def origin(root: Path) -> str:
    """Address of the git remote `origin`, without a token or password, which Prefect would keep in its database: a
    worker has credentials of its own. The folder itself where there is none."""
    try:
        return without_credentials(git(root, "remote", "get-url", "origin"))
    except StageFailed:
        return str(root)


def _run_jobs(deployment: str, jobs: list[dict[str, Any]], hours: float) -> dict[str, FlowRun]:
    """Start all jobs and wait for them; when this flow is cancelled or fails, so are they. Model to ended run."""
    started: dict[str, UUID] = {}
    try:
        for job in jobs:
            started[job["model"]] = _start_job(deployment, job)
        get_run_logger().info("%d jobs started: %s", len(started), ", ".join(started) or "nothing has changed")
        return {model: _wait(run, hours) for model, run in started.items()}
    except BaseException:
        for run in started.values():
            _cancel(run, "the flow that started it was cancelled")
        raise


def _start_job(deployment: str, job: dict[str, Any]) -> UUID:
    run = run_deployment(deployment, parameters=job, timeout=0, flow_run_name=job["model"])
    assert isinstance(run, FlowRun)
    return run.id


def _wait(job: UUID, hours: float) -> FlowRun:
    """The job's run once it has ended; one that runs too long is cancelled, and taken for crashed where its worker does
    not end it. Time in the queue does not count."""
    told = 0
    with get_client(sync_client=True) as client:
        while not (run := client.read_flow_run(job)).state or not run.state.is_final():
            runs = (datetime.now(UTC) - run.start_time).total_seconds() if run.start_time else 0.0
            if runs > hours * 3600 + told * _CANCEL_SECONDS:
                why = f"took more than {hours:g} hours"
                if told < _CANCELS:
                    _cancel(job, why)
                else:
                    gone = Crashed(message=f"{why}, and its worker does not answer")
                    client.set_flow_run_state(job, gone, force=True)
                told += 1
            time.sleep(_POLL_SECONDS)
    return run


def _cancel(job: UUID, why: str) -> None:
    """Have the job's worker end it; a job that has ended stays as it is."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(job).state
        if not (state and state.is_final()):
            client.set_flow_run_state(job, Cancelling(message=why))


def _said(run: FlowRun) -> str:
    return f"{run.state.name} {run.state.message or ''}".strip() if run.state else "lost"


def merge_entries(root: Path, entries: dict[str, Any]) -> None:
    """Merge under DVC's lock, so that no dvc command reads or writes dvc.lock meanwhile."""
    from dvc.repo import Repo, lock_repo

    with Repo(str(root), _wait_for_lock=True) as repo, lock_repo(repo):
        merge(root, entries)


def _pull(root: Path, remote: str, stages: set[str]) -> None:
    """The metrics of stages, and nothing else that they wrote: models and texts stay where they are needed."""
    entries = read_lock(root) or {}
    outs = (Path(out["path"]) for name in stages for out in entries.get(name, {}).get("outs", []))
    files = sorted(str(path) for path in outs if path.is_relative_to(METRICS))
    if files and dvc(root, "pull", "--remote", remote, *files, remote=remote):
        raise StageFailed("the jobs' metrics could not be pulled, see above: run again")


def _push(root: Path, remote: str, stages: set[str]) -> None:
    if stages and dvc(root, "push", "--run-cache", "--remote", remote, *sorted(stages), remote=remote):
        raise StageFailed(f"the push to {remote!r} did not complete: run again")


def push_added(root: Path, remote: str) -> None:
    """Push what `dvc add` tracks and entries of the grid name, which jobs check out."""
    files = added_files(load_params(root / "params.yaml"), root)
    if files and dvc(root, "push", "--remote", remote, *files, remote=remote):
        raise StageFailed(f"the push of {', '.join(files)} to {remote!r} did not complete: run again")


def _commit(root: Path) -> None:
    if git(root, "status", "--porcelain", "dvc.lock"):
        git(root, "add", "dvc.lock")
        git(root, "commit", "--quiet", "--message", "Results of the grid", "--", "dvc.lock")


def main(
    repository: Annotated[str | None, typer.Option(help="where workers clone from; default: git's origin")] = None,
    remote: Annotated[str | None, typer.Option(help="the DVC remote; default: the default one")] = None,
    deployment: Annotated[str, typer.Option(help="the job's deployment")] = DEPLOYMENT,
    job_hours: Annotated[float, typer.Option(min=0.01, help="a job that runs longer is cancelled")] = 48,
    parallel: Annotated[int | None, typer.Option(min=1, help="stages on a worker's CPU at once")] = None,
    commit: Annotated[bool, typer.Option(help="commit dvc.lock at the end")] = True,
) -> None:
    """Run the committed grid, one job per model, on the workers of a pool."""
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        raise BadInput("PREFECT_API_URL is not set: jobs reach workers through a server (docs/distributed.md)")
    check_without_credentials("--repository", repository or "")  # Prefect keeps the parameters of every run
    check_machines(ROOT, remote, commit=commit)
    given = {"repository": repository, "remote": remote, "deployment": deployment, "job_hours": job_hours}
    raise SystemExit(run_here(machines, **given, parallel=parallel, commit=commit))


if __name__ == "__main__":
    command_line(main)
