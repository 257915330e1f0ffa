"""`python -m flows.machines`: one job per model on any worker, each in its own clone, sharing a remote.

The head runs what the models share, starts a job per model, merges their dvc.lock entries by stage name (merging the
text conflicts), and runs what needs all models: the report. What a job has pushed is never computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from flows import ROOT
from flows.clones import committed_revision, fresh_clone, git
from flows.dag import Dag, Stage, read_dag
from flows.gates import CPU, GPU, visible_gpus
from flows.restore import command_line, plan, run_here, run_stages
from flows.tasks import BAD_INPUT_STATE
from restorelcc.core.errors import BadInput, StageFailed
from restorelcc.params import load_params
from restorelcc.verbs.share import restore_from_cache
from restorelcc.workflow.lockfile import merge, read_lock
from restorelcc.workflow.remotes import check_remote, dvc, remote_name
from restorelcc.workflow.running import held_lock
from restorelcc.workflow.versions import check_versions

DEPLOYMENT = "model-job/machines"
_POLL_SECONDS = 2.0


@flow(name="model-job", flow_run_name="{model}", validate_parameters=True)
def model_job(repository: str, revision: str, model: str, remote: str, parallel: int | None = None) -> State:
    """Run one model's stages in a clone of this worker's own, and push them.

    Args:
        repository: where to clone from: an address or a path that this worker can read.
        revision: the commit to run.
        model: key of `models` in params.yaml.
        remote: name of the DVC remote.
        parallel: stages that run on the CPU at once; by default one per core.
    """
    clone = clones_folder(repository) / model
    with held_lock(clone.with_name(f"{model}.lock")):
        fresh_clone(repository, clone, revision)
        check_versions(clone)
        dag = read_dag(clone, load_params(clone / "params.yaml"))
        own = {stage.name for stage in dag.stages if stage.model == model}
        needed = own.union(*(stage.needs for stage in dag.stages if stage.name in own))
        fetch_run_cache(clone, remote)
        restore_from_cache(clone, remote, needed)
        dag = read_dag(clone, load_params(clone / "params.yaml"))
        state = run_stages(subset(dag, own), clone, local_slots(parallel))
        if not state.is_completed():
            return state
        if dvc(clone, "push", "--run-cache", "--remote", remote, *sorted(own)):
            raise StageFailed(f"{model}: the push to {remote!r} did not complete: run the job again")
        publish_lock(clone, own)
    return Completed(message=f"{model}: {state.message}")


def clones_folder(repository: str) -> Path:
    """Where this machine keeps its clones: $RESTORELCC_CLONES, or the user's cache folder."""
    given = os.environ.get("RESTORELCC_CLONES")
    folder = Path(given) if given else Path.home() / ".cache" / "restorelcc" / "clones"
    return folder / hashlib.sha256(repository.encode()).hexdigest()[:12]


def local_slots(parallel: int | None) -> dict[str, int]:
    """Slots of this machine's gates."""
    return {CPU: parallel or os.cpu_count() or 1, GPU: len(visible_gpus()) or 1}


def fetch_run_cache(clone: Path, remote: str) -> None:
    """What others have run, without the files: those come stage by stage, as they are needed."""
    from dvc.repo import Repo, lock_repo

    with Repo(str(clone), _wait_for_lock=True) as repo, lock_repo(repo):
        repo.stage_cache.pull(remote)


def publish_lock(clone: Path, stages: set[str]) -> None:
    """The job's dvc.lock entries as an artifact of its flow run, for the head to merge."""
    entries = {name: entry for name, entry in (read_lock(clone) or {}).items() if name in stages}
    create_markdown_artifact(json.dumps(entries), key="lock", description="dvc.lock entries of this job")


def subset(dag: Dag, names: set[str]) -> Dag:
    """Some stages of a DAG, with the edges among them."""
    kept = [
        Stage(stage.name, tuple(name for name in stage.needs if name in names), stage.resource, stage.model, True)
        for stage in dag.stages
        if stage.name in names
    ]
    return Dag(tuple(kept), dag.notes)


def waves(dag: Dag) -> tuple[set[str], dict[str, set[str]], set[str]]:
    """What the models share, what belongs to each model, and what needs them: names of stages."""
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


@flow(name="machines", validate_parameters=True)
def machines(
    repository: str | None = None,
    remote: str | None = None,
    deployment: str = DEPLOYMENT,
    job_hours: float = 48,
    parallel: int | None = None,
    commit: bool = True,
) -> State:
    """Run the committed grid on all workers of a pool.

    Args:
        repository: where workers clone from; by default this folder's git remote `origin`, or the folder itself.
        remote: the DVC remote to share; by default the default one.
        deployment: the job's deployment, as `prefect deploy` named it.
        job_hours: a job that takes longer is cancelled.
        parallel: stages on a worker's CPU at once; by default one per core.
        commit: commit dvc.lock at the end.
    """
    logger = get_run_logger()
    try:
        name, dag = check_machines(ROOT, remote)
        shared, per_model, rest = waves(dag)
    except BadInput as error:
        return Failed(name=BAD_INPUT_STATE, message=str(error))
    if shared:
        state = run_stages(subset(dag, shared), ROOT, local_slots(parallel))
        if not state.is_completed():
            return state
        _push(name, shared)
    clean = dag.clean()
    changed = [model for model, stages in per_model.items() if not stages <= clean]
    parameters = {
        "repository": repository or origin(ROOT),
        "revision": committed_revision(ROOT),
        "remote": name,
        "parallel": parallel,
    }
    jobs = {model: _start_job(deployment, model, parameters | {"model": model}) for model in changed}
    logger.info("%d jobs started: %s", len(jobs), ", ".join(jobs) or "nothing has changed")
    ended = {model: _wait(job, job_hours) for model, job in jobs.items()}
    completed = [run.id for run in ended.values() if run.state and run.state.is_completed()]
    for job in completed:
        merge_entries(ROOT, job_entries(job))
    if len(completed) < len(jobs):
        told = [f"{model}: {_said(run)}" for model, run in ended.items() if run.id not in completed]
        return Failed(message=f"{len(told)} of {len(jobs)} jobs did not complete. {'; '.join(told)}")
    return _finish(dag, rest, name, commit, parallel)


def _said(run: FlowRun) -> str:
    return f"{run.state.name} {run.state.message or ''}".strip() if run.state else "lost"


def _finish(dag: Dag, rest: set[str], remote: str, commit: bool, parallel: int | None) -> State:
    """Fetch what the last stages read, run them here, push, commit."""
    needed = sorted(set().union(*(stage.needs for stage in dag.stages if stage.name in rest)) - rest)
    if needed and dvc(ROOT, "pull", "--remote", remote, *needed):
        raise StageFailed("the jobs' metrics could not be pulled, see above: run again")
    state = run_stages(subset(dag, rest), ROOT, local_slots(parallel))
    if state.is_completed():
        _push(remote, rest)
        if commit and git(ROOT, "status", "--porcelain", "dvc.lock"):
            git(ROOT, "add", "dvc.lock")
            git(ROOT, "commit", "--quiet", "--message", "Results of the grid", "--", "dvc.lock")
    return state


def _push(remote: str, stages: set[str]) -> None:
    if stages and dvc(ROOT, "push", "--run-cache", "--remote", remote, *sorted(stages)):
        raise StageFailed(f"the push to {remote!r} did not complete: run again")


def check_machines(root: Path, remote: str | None) -> tuple[str, Dag]:
    """Remote's name and DAG, once all that can be refused is checked: what is committed is what workers run."""
    from dvc.repo import Repo

    committed_revision(root)
    dag = plan(root)
    tracked = ["dvc.yaml", "params.yaml", "versions.json", "restorelcc", "imports", ".dvc/config"]
    if changed := git(root, "status", "--porcelain", "--", *tracked):
        raise BadInput(f"{changed.split()[-1]} is not committed, and workers run what is committed: commit it first")
    with Repo(str(root), _wait_for_lock=True) as repo:
        name = remote_name(repo.config, remote)
        check_remote(repo, name)
    return name, dag


def origin(root: Path) -> str:
    """Address of the git remote `origin`; the folder itself where there is none."""
    try:
        return git(root, "remote", "get-url", "origin")
    except StageFailed:
        return str(root)


def _start_job(deployment: str, model: str, parameters: dict[str, Any]) -> UUID:
    run = run_deployment(deployment, parameters=parameters, timeout=0, flow_run_name=model)
    assert isinstance(run, FlowRun)
    return run.id


def _wait(job: UUID, hours: float) -> FlowRun:
    """The job's run once it has ended; one that takes too long is cancelled."""
    from prefect.states import Cancelling

    deadline = time.monotonic() + hours * 3600
    with get_client(sync_client=True) as client:
        while not (run := client.read_flow_run(job)).state or not run.state.is_final():
            if time.monotonic() > deadline:
                client.set_flow_run_state(job, Cancelling(message=f"took more than {hours:g} hours"), force=True)
                deadline += 60
            time.sleep(_POLL_SECONDS)
    return run


def job_entries(run: UUID) -> dict[str, Any]:
    """The dvc.lock entries that a job published."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[run]), key=ArtifactFilterKey(any_=["lock"])
            )
        )
    entries: dict[str, Any] = json.loads(str(found[0].data)) if found else {}
    return entries


def merge_entries(root: Path, entries: dict[str, Any]) -> None:
    """Merge under DVC's lock, so that no dvc command reads or writes dvc.lock meanwhile."""
    from dvc.repo import Repo, lock_repo

    with Repo(str(root), _wait_for_lock=True) as repo, lock_repo(repo):
        merge(root, entries)


def main(
    repository: Annotated[str | None, typer.Option(help="where workers clone from; default: git's origin")] = None,
    remote: Annotated[str | None, typer.Option(help="the DVC remote; default: the default one")] = None,
    deployment: Annotated[str, typer.Option(help="the job's deployment")] = DEPLOYMENT,
    parallel: Annotated[int | None, typer.Option(min=1, help="stages on a worker's CPU at once")] = None,
    commit: Annotated[bool, typer.Option(help="commit dvc.lock at the end")] = True,
) -> None:
    """Run the committed grid, one job per model, on the workers of a pool."""
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        raise BadInput("PREFECT_API_URL is not set: jobs reach workers through a server (docs/distributed.md)")
    check_machines(ROOT, remote)
    raise SystemExit(
        run_here(
            machines, repository=repository, remote=remote, deployment=deployment, parallel=parallel, commit=commit
        )
    )


if __name__ == "__main__":
    command_line(main)
