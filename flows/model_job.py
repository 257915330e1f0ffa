"""One model's share of a grid, in the worker's own clone; flows/machines.py starts this on the workers of a pool."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.clones import fresh_clone
from flows.dag import Dag, read_dag
from flows.gates import AtLeastOne, Limits
from flows.named_files import bring_added
from flows.restore import run_stages
from flows.tasks import in_words
from restorelcc.base.errors import StageFailed
from restorelcc.base.layout import Layout
from restorelcc.pipeline.inputs import lay_out_inputs
from restorelcc.pipeline.lockfile import read_lock
from restorelcc.pipeline.named_sources import check_names
from restorelcc.pipeline.params import load_params
from restorelcc.pipeline.remotes import check_remote, remote_name
from restorelcc.pipeline.run_cache import opened
from restorelcc.pipeline.running import held_lock
from restorelcc.pipeline.versions import check_versions
from restorelcc.pipeline.watched import dvc, restored


@flow(name="model-job", flow_run_name="{model}", validate_parameters=True)
def model_job(
    repository: str, revision: str, model: str, remote: str, parallel: AtLeastOne | None = None, folder: str = "."
) -> State:
    """Run one model's stages in this worker's clone, and push the results.

    Args:
        repository: where to clone from: an address or a path that this worker can read.
        revision: the commit to run.
        model: key of `models` in params.yaml.
        remote: name of the DVC remote.
        parallel: stages that run on the CPU at once; by default those whose threads have a core each.
        folder: the project's, in the repository.
    """
    return in_words(run_job, repository, revision, model, remote, Limits(parallel), folder)


def run_job(repository: str, revision: str, model: str, remote: str, limits: Limits, folder: str = ".") -> State:
    """The body of the flow. Raises BadInput and StageFailed."""
    home = clones_folder(repository) / model
    with held_lock(home.with_name(f"{model}.lock")):
        clone = fresh_clone(repository, home, revision) / folder
        check_versions(clone)
        params = load_params(clone / "params.yaml")
        with opened(clone) as repo:  # before hours of computing
            check_remote(repo, remote_name(repo.config, remote), writes=True)
        bring_added(params, clone, model, remote)
        lay_out_inputs(params, model, Layout(clone))
        check_names(params, model, Layout(clone))
        stages = read_dag(clone, params).stages
        own = {stage.name for stage in stages if stage.model == model}
        needed = own.union(*(stage.needs for stage in stages if stage.name in own))
        restored(clone, remote, needed, fetch=True)
        state = run_stages(subset(read_dag(clone, params), own), clone, limits)
        if not state.is_completed():
            return state
        if dvc(clone, "push", "--run-cache", "--remote", remote, *sorted(own), remote=remote):
            raise StageFailed(f"{model}: the push to {remote!r} did not complete: run the job again")
        publish_lock(clone, own)
    return Completed(message=f"{model}: {state.message}")


def clones_folder(repository: str) -> Path:
    """Where this machine keeps its clones: $RESTORELCC_CLONES, or the user's cache folder."""
    given = os.environ.get("RESTORELCC_CLONES")
    folder = Path(given) if given else Path.home() / ".cache" / "restorelcc" / "clones"
    return folder / hashlib.sha256(repository.encode()).hexdigest()[:12]


def subset(dag: Dag, names: set[str]) -> Dag:
    """Some stages of a DAG, with the edges among them."""
    kept = [
        replace(stage, needs=tuple(name for name in stage.needs if name in names), changed=True)
        for stage in dag.stages
        if stage.name in names
    ]
    return Dag(tuple(kept), dag.notes)


def publish_lock(clone: Path, stages: set[str]) -> None:
    """The job's dvc.lock entries as an artifact of its flow run, for the head to merge."""
    entries = {name: entry for name, entry in (read_lock(clone) or {}).items() if name in stages}
    create_markdown_artifact(json.dumps(entries), key="lock", description="dvc.lock entries of this job")


def published_lock(run: UUID) -> dict[str, Any]:
    """The dvc.lock entries that a job published."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[run]), key=ArtifactFilterKey(any_=["lock"])
            )
        )
    entries: dict[str, Any] = json.loads(str(found[0].data)) if found else {}
    return entries
