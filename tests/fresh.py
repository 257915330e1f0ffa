"""Processes that know no more than anybody's: forks of one that has imported torch and transformers, and nothing of
this project. A process of its own for every check would spend six seconds on these imports.

This module imports nothing of the project either: a function that stands here runs in such a fork as it is.
"""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from multiprocessing import forkserver, spawn
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

STOCK = ("torch", "transformers.models.auto.modeling_auto", "transformers.modeling_utils", "safetensors.torch")
MODELS = ("llama", "mistral")


def fresh(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work(*arguments)` returns, or raises, in a process of its own; the module that it stands in is imported
    there. BrokenProcessPool where the process does not live to tell."""
    context = multiprocessing.get_context("forkserver")  # one server for all of a session
    context.set_forkserver_preload([*STOCK, *(f"transformers.models.{name}.modeling_{name}" for name in MODELS)])
    if libraries := os.environ.get("RESTORELCC_TESTS_LIBRARIES"):  # it is then a fork of the one that has them all
        spawn.set_executable(str(Path(libraries).with_name("python")))
        forkserver.ensure_running()
        spawn.set_executable(sys.executable)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_called, work, *arguments).result()


def _called(work: Callable[..., Any], *arguments: Any) -> Any:
    gc.freeze()  # the libraries are no garbage
    return work(*arguments)


def own_modules() -> list[str]:
    """Modules of this project that the process has loaded, its tests aside."""
    return [name for name in sys.modules if name.partition(".")[0] in ("restorelcc", "flows", "benchmarks")]


def stock_logits(folder: Path, tokens: list[list[int]]) -> tuple[Any, list[str]]:
    """Logits by transformers alone, as an array; and what `own_modules` finds once they are there."""
    import torch
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model(input_ids=torch.tensor(tokens)).logits.detach().numpy(), own_modules()


def verify_by_fork(folder: Path) -> tuple[str, list[str]]:
    """`restorelcc verify --json`, which loads the checkpoint in a fork: what it prints, and the project's modules that
    the fork had."""
    from restorelcc.cli.app import app

    had, fork = [], os.fork

    def watched() -> int:
        had.extend(own_modules())
        return fork()

    printed = io.StringIO()
    with (
        mock.patch("os.fork", watched),
        mock.patch("subprocess.run", side_effect=AssertionError),
        redirect_stdout(printed),
    ):
        app(["verify", "--json", str(folder)], standalone_mode=False)
    return printed.getvalue(), had


def asked_of_a_fork(request: Path) -> tuple[int, str]:
    """Exit status and words of the process that waits for a request; a second one is asked nothing and ends."""
    from restorelcc.release.verify.fresh import wait

    idle = wait()
    os.close(idle.asks)
    assert os.waitpid(idle.pid, 0)[1] == 0
    return wait().run(request)


def interrupted_while_a_fork_works(folder: Path) -> bool:
    """Whether the process that answers a request has ended, once who asked is interrupted. The request is a pipe that
    nobody writes to: it would be read for ever."""
    from restorelcc.release.verify.fresh import wait

    request = folder / "request.json"
    os.mkfifo(request)
    waiting = wait()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        waiting.run(request)
    except KeyboardInterrupt:
        return not Path(f"/proc/{waiting.pid}").exists()
    return False


@contextmanager
def verify_in_forks() -> Iterator[None]:
    """The process that `verify` starts, which knows transformers alone, is such a fork."""
    from restorelcc.release.verify import logits

    with mock.patch.object(logits, "subprocess", SimpleNamespace(run=run_script)):
        yield


def run_script(command: list[str], *, cwd: str, **_: object) -> SimpleNamespace:
    """subprocess.run of `python -P SCRIPT ARGUMENTS`, in such a process."""
    done = SimpleNamespace(returncode=0, stdout="", stderr="")
    done.returncode, done.stderr = fresh(_script, command[2:], cwd)
    return done


def _script(command: list[str], folder: str) -> tuple[int, str]:
    os.chdir(folder)
    sys.argv, said = command, io.StringIO()
    assert not own_modules()
    with redirect_stderr(said):
        try:
            runpy.run_path(command[0], run_name="__main__")
            assert not own_modules()
        except SystemExit as end:
            return 1, f"{said.getvalue()}{end.code}\n"
        except BaseException:
            traceback.print_exc()
            return 1, said.getvalue()
    return 0, said.getvalue()
