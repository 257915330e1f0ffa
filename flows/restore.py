"""`python -m flows.restore`: run the grid of params.yaml with Prefect, several stages at once. Needs no server.

The flow reads the DAG from DVC and runs every stage by DVC; it decides only when, where and how many at once.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Annotated, Any
from uuid import uuid4

import typer
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture, as_completed
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogHandler
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows import ROOT
from flows.artifacts import Progress, StageResult, publish_report, publish_stages, summary
from flows.dag import Dag, read_dag
from flows.gates import AtLeastOne, Limits, gate_folder
from flows.server import prefect_api
from flows.stage_process import end_all, stage_environment
from flows.tasks import BAD_INPUT_STATE, FAILED_STATE, SKIPPED_STATE, command_of, in_words, stage_task
from restorelcc.base.ending import tell
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.pipeline.inputs import lay_out_inputs
from restorelcc.pipeline.named_sources import check_names
from restorelcc.pipeline.params import load_params
from restorelcc.pipeline.renamed import rename_in_file
from restorelcc.pipeline.versions import FOLDER, write_versions
from restorelcc.pipeline.workspace import flow_running

_WORKERS_SECONDS = 60.0  # in which Dask's workers end the stages of a run


@flow(name="restore", task_runner=ThreadPoolTaskRunner(), validate_parameters=True)
def restore(parallel: AtLeastOne | None = None, gpus: AtLeastOne | None = None) -> State:
    """Run every stage of params.yaml's grid that DVC finds changed.

    Args:
        parallel: stages that run on the CPU at once; by default those whose threads have a core each.
        gpus: stages that run on GPUs at once; by default one per GPU.
    """
    return in_words(run_grid, ROOT, Limits(parallel, gpus))


def run_grid(root: Path, limits: Limits) -> State:
    """The body of a flow over the grid in `root`: its final state says how many stages did what. Raises BadInput."""
    with planned(root) as dag:
        state = run_stages(dag, root, limits)
    if state.is_completed():
        publish_report(root)
    return state


def run_stages(dag: Dag, root: Path, limits: Limits) -> State:
    """Run a DAG's stages; when the flow is cancelled or interrupted, all of them end."""
    run = uuid4().hex
    try:
        results = _submit_and_wait(dag, root, limits, run)
    except BaseException:
        end_all(run)
        if client := _lasting_workers():
            end_on_workers(client, run)
        raise
    publish_stages(results)
    failed = [result for result in results if result.outcome in (FAILED_STATE, "Crashed", BAD_INPUT_STATE)]
    if failed:
        name = BAD_INPUT_STATE if all(result.outcome == BAD_INPUT_STATE for result in failed) else FAILED_STATE
        return Failed(name=name, message=f"{summary(results)}. {'; '.join(result.message for result in failed)}")
    return Completed(message=summary(results))


def _lasting_workers() -> Any:
    """The client of Dask workers that outlive this flow, those of a scheduler with an address; None without them."""
    context = FlowRunContext.get()
    runner = context.task_runner if context else None
    return getattr(runner, "_client", None) if getattr(runner, "address", None) else None


def end_on_workers(client: Any, run: str) -> None:
    """`end_all` on every Dask worker of a client; one that does not answer is not waited for without end."""
    ending = Thread(target=client.run, args=(end_all, run), kwargs={"on_error": "ignore"}, daemon=True)
    ending.start()
    ending.join(_WORKERS_SECONDS)


@contextmanager
def planned(root: Path) -> Iterator[Dag]:
    """The stages, after all checks of the input; says what it repaired. Raises BadInput.

    Inside, others see that a flow works here. Not before it has laid out what it depends on: of two flows that both do
    that, each would wait for the other.
    """
    gate_folder()
    file = root / "params.yaml"
    renamed = rename_in_file(file) if file.is_file() else []
    params = load_params(file)
    for alias in params.grid.model:
        lay_out_inputs(params, alias, Layout(root))
        check_names(params, alias, Layout(root))
    changed = write_versions(root) if (root / FOLDER).is_dir() else []
    with flow_running(root):
        dag = read_dag(root, params)
        for note in (*renamed, *changed, *dag.notes):
            get_run_logger().info(note)
        yield dag


def _submit_and_wait(dag: Dag, root: Path, limits: Limits, run: str) -> list[StageResult]:
    clean, progress = dag.clean(), Progress(len(dag.stages))
    futures: dict[str, PrefectFuture[Any]] = {}
    for stage in dag.stages:
        futures[stage.name] = stage_task.submit(
            command_of(stage, str(root), run),
            limits,
            stage.name in clean,
            wait_for=[futures[name] for name in stage.needs],
        )
    for future in as_completed(list(futures.values())):
        future.wait()
        progress.advance()
    return [_result(name, future) for name, future in futures.items()]


def _result(name: str, future: PrefectFuture[Any]) -> StageResult:
    state = future.state
    if state.name == "NotReady":
        message = "not run: a stage that it needs did not succeed"
        skipped = Cancelled(name=SKIPPED_STATE, message=message)
        with get_client(sync_client=True) as client:
            client.set_task_run_state(future.task_run_id, skipped, force=True)
        return StageResult(name, SKIPPED_STATE, 0.0, message)
    if state.is_completed():
        return StageResult(name, state.name or "Completed", float(state.result(raise_on_failure=False)))
    return StageResult(name, state.name or FAILED_STATE, 0.0, _first_line(state.message or name))


def _first_line(message: str) -> str:
    return message.removeprefix("Task run encountered an exception ").splitlines()[0]


def run_here(body: Any, **parameters: Any) -> int:
    """Run a flow in this process, with a server of its own unless one is configured; the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    if not Path.cwd().is_relative_to(ROOT):
        print(f"restorelcc: runs the project in {ROOT}", file=sys.stderr)
    with prefect_api():
        state = body(return_state=True, **parameters)
        APILogHandler().flush()  # before a server of our own ends
    if state.is_completed():
        print(f"restorelcc: {state.message}", file=sys.stderr)
        return 0
    print(f"restorelcc: {'error' if state.name == BAD_INPUT_STATE else 'failed'}: {state.message}", file=sys.stderr)
    return 2 if state.name == BAD_INPUT_STATE else 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def command_line(main: Any) -> None:
    """Run a typer command with the exit codes of restorelcc: 1 failed, 2 bad input, 130 interrupted."""
    try:
        typer.run(main)
    except (Exception, KeyboardInterrupt) as error:
        raise SystemExit(tell(error, "interrupted; no stage is left running")) from None


def runner_for(dask: str | None) -> TaskRunner[Any]:
    """Threads here, or Dask: a number of local worker processes, or the address of a scheduler."""
    if dask is None:
        return ThreadPoolTaskRunner()
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise BadInput("--dask needs prefect-dask: pip install 'restorelcc[dask]'") from error
    if dask.isdigit() and int(dask) > 0:
        return DaskTaskRunner(
            cluster_kwargs={"n_workers": int(dask), "threads_per_worker": 1, "dashboard_address": None}
        )
    if "://" not in dask:
        raise BadInput(f"--dask {dask!r} is neither a number of workers nor an address: write 2 or tcp://host:8786")
    return DaskTaskRunner(address=dask)


def main(
    parallel: Annotated[
        int | None, typer.Option(min=1, help="stages on the CPU at once; default: a core for each thread")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="stages on GPUs at once; default: one per GPU")] = None,
    dask: Annotated[str | None, typer.Option(help="local Dask workers, or a scheduler's address")] = None,
) -> None:
    """Run the grid in params.yaml."""
    load_params(ROOT / "params.yaml")  # bad input ends here, before any server starts
    code = run_here(restore.with_options(task_runner=runner_for(dask)), parallel=parallel, gpus=gpus)
    if code == 0:
        subprocess.run(["restorelcc", "table"], cwd=ROOT, env=stage_environment(ROOT), check=False)
    raise SystemExit(code)


if __name__ == "__main__":
    command_line(main)
