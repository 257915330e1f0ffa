"""A stage as a Prefect task: waits for a slot, runs `dvc repro -s`, and ends in a state that says what happened."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import ParamSpec

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from prefect.tasks import Task, exponential_backoff

from flows.dag import Stage
from flows.gates import CPU, Limits, gate, may_have_gpu
from flows.stage_process import UNCHANGED, Command, StageError, raise_if_ending, run_stage
from restorelcc.base.errors import BadInput, StageFailed

P = ParamSpec("P")
BAD_INPUT_STATE, FAILED_STATE, SKIPPED_STATE = "Bad input", "Failed", "Skipped"
_RETRIES = 2
_PAUSE_SECONDS = float(os.environ.get("RESTORELCC_RETRY_SECONDS", "10"))


def in_words(body: Callable[P, State], *arguments: P.args, **named: P.kwargs) -> State:
    """The state in which a flow's body ends; a refusal or failure is one sentence, without a traceback."""
    try:
        return body(*arguments, **named)
    except BadInput as error:
        return Failed(name=BAD_INPUT_STATE, message=str(error))
    except StageFailed as error:
        return Failed(name=FAILED_STATE, message=str(error))


def worth_retrying(task: Task, run: TaskRun, state: State) -> bool:
    """A network that broke, a device that was full, a process that was killed; never a stage that refused its input."""
    error = state.data if isinstance(state.data, StageError) else None
    return error is not None and error.transient


@task(
    name="stage",
    task_run_name="{command.stage}",
    retries=_RETRIES,
    retry_delay_seconds=exponential_backoff(backoff_factor=_PAUSE_SECONDS),
    retry_jitter_factor=0.5,
    retry_condition_fn=worth_retrying,
    cache_policy=NO_CACHE,  # DVC is the cache: with Prefect's, a file that was deleted stays "Cached"
    persist_result=False,
)
def stage_task(command: Command, limits: Limits, clean: bool) -> State:
    """Run one stage; `clean` means that DVC already said it would not run. The state's data is the seconds it took.

    With Dask this runs on a worker, whose cores and GPUs count, and not those of the flow's machine.
    """
    logger = get_run_logger()
    if clean:
        return Completed(name=UNCHANGED, message="nothing that it depends on has changed", data=0.0)
    command = on_this_machine(command, limits)
    slots, taken = limits.slots(command.resource), limits.taken(command.resource, command.threads)
    ending = partial(raise_if_ending, command.run)
    with gate(command.resource, slots, taken=taken, every=command.every_gpu, meanwhile=ending) as slot:
        start = time.monotonic()
        try:
            outcome = run_stage(replace(command, slot=slot, share=limits.share()), logger.info)
        except StageError as error:
            if error.transient:
                raise
            return Failed(name=BAD_INPUT_STATE if error.bad_input else FAILED_STATE, message=str(error))
        seconds = time.monotonic() - start
    return Completed(name=outcome, message=f"{outcome} in {seconds:.1f} s", data=seconds)


def on_this_machine(command: Command, limits: Limits) -> Command:
    """A stage that may use a GPU takes a CPU core where there is no GPU."""
    as_it_is = command.resource == CPU or may_have_gpu(limits)
    return command if as_it_is else replace(command, resource=CPU, every_gpu=False)


def command_of(stage: Stage, root: str, run: str = "") -> Command:
    """What goes to the task, and with Dask to another process."""
    return Command(root, stage.name, stage.resource, every_gpu=stage.every_gpu, threads=stage.threads, run=run)
