"""Several processes train what one trains, over gloo: each has the whole model (DDP) or a share of it (FSDP)."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor
from typer.testing import CliRunner

from restorelcc.base.cell import AUTO, Cell
from restorelcc.base.documents import read_json
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.layout import Layout
from restorelcc.cli.app import app
from restorelcc.models.placement import shared_out, whole
from restorelcc.models.tensors import read_all_tensors
from restorelcc.stages.compensate import CompensateConfig, DistillConfig
from restorelcc.stages.compensate.stage import run
from restorelcc.training import loop as fit
from tests import pico
from tests.dag import ROOT
from tests.recovery_project import CELL, ENTRY, recovery_project

RESTORED = Cell(CELL.model, CELL.pruning, "0.5")
# Batches of 7 of 24 pairs: the last one holds 3, so that two processes never have equal shares.
CONFIG = CompensateConfig(learning_rates=(0.02,), epochs=2, batch_size=7, max_tokens=16, checkpoint_steps=2)
SHARED_OUT = {"ACCELERATE_USE_FSDP": "true"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rendezvous(rank: int, port: int, count: int = 2) -> dict[str, str]:
    """What a launcher tells each of its processes."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RESTORELCC_PROGRESS": "0",
    }  # fmt: skip


def _child(environment: dict[str, str], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    AcceleratorState._reset_state()  # what the process that this one was forked from had found out
    PartialState._reset_state()
    try:
        work(*arguments)
    except StageFailed as failure:
        print(f"failed: {failure}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def together(work: Callable[..., Any], *arguments: Any, **environment: str) -> list[int]:
    """Run `work` in two forked processes that train together; their exit codes."""
    context, port = multiprocessing.get_context("fork"), _free_port()
    processes = [
        context.Process(target=_child, args=(_rendezvous(rank, port) | environment, work, arguments))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        if process.is_alive():
            process.kill()
            process.join()
    return [int(process.exitcode or 0) for process in processes]


def _result(layout: Layout, cell: Cell) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return read_all_tensors(layout.compensation(cell))[0], read_json(layout.training(cell))


def _equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert float((found[name].double() - tensor.double()).abs().max()) <= 1e-5, name


@pytest.mark.parametrize("environment", [{}, SHARED_OUT], ids=["whole models", "shared out"])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"accumulate": 2, "sites": ("o", "down"), "gradient_checkpointing": True}),
        ("opt", {"start": "ridge", "distill": DistillConfig(weight=0.5, top_k=8)}),
    ],
)
def test_two_processes_train_what_one_trains(
    family: str, changes: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    layout = recovery_project(tmp_path, family=family)
    config = CONFIG.model_copy(update=changes)
    run(RESTORED, config, ENTRY, layout)
    files = {path: path.stat().st_mtime_ns for path in (layout.compensation(RESTORED), layout.training(RESTORED))}
    alone, trained = _result(layout, RESTORED)
    assert together(run, RESTORED, config, ENTRY, layout, **environment) == [0, 0]
    assert all(path.stat().st_mtime_ns > before for path, before in files.items()), "written anew"
    found, again = _result(layout, RESTORED)
    _equal(found, alone)
    assert again["valid_loss"] == pytest.approx(trained["valid_loss"], abs=1e-5)
    assert again["runs"][0]["steps"] == trained["runs"][0]["steps"] == 8
    assert not list(layout.work.glob("compensate-*"))


def test_two_processes_choose_the_same_ratio_and_rate(tmp_path: Path) -> None:
    layout, cell = recovery_project(tmp_path), Cell(CELL.model, CELL.pruning, AUTO)
    config = CONFIG.model_copy(update={"learning_rates": (0.001, 0.02), "epochs": 1, "auto_ratios": (0.25, 0.5)})
    run(cell, config, ENTRY, layout)
    alone, trained = _result(layout, cell)
    assert together(run, cell, config, ENTRY, layout, **SHARED_OUT) == [0, 0]
    found, again = _result(layout, cell)
    _equal(found, alone)
    assert (again["head_ratio"], again["learning_rate"]) == (trained["head_ratio"], trained["learning_rate"])


def _hold_a_share() -> None:
    model, rank = pico.pico(), int(os.environ["RANK"])
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    expected = model(input_ids=pico.tokens()).logits
    shared_out(model, torch.device("cpu"))
    for name, weight in model.named_parameters():
        local = weight.to_local()  # type: ignore[attr-defined]
        assert torch.equal(local, before[name].chunk(2)[rank]), name
        assert torch.equal(whole(weight), before[name])
    assert torch.equal(model(input_ids=pico.tokens()).logits, expected)


def test_each_process_holds_its_share_of_the_weights_alone() -> None:
    assert together(_hold_a_share) == [0, 0]


def _die_at_the_third_step(layout: Layout) -> None:
    step = fit._Run._step

    def deadly(self: Any, batch: list[int]) -> None:
        if os.environ["RANK"] == "1" and self.state.steps == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, batch)

    fit._Run._step = deadly  # type: ignore[method-assign]
    run(RESTORED, CONFIG, ENTRY, layout)


def _go_on(layout: Layout) -> None:
    restore = fit._Run._restore

    def told(self: Any, tensors: dict[str, Tensor], saved: dict[str, Any]) -> None:
        print(f"goes on after step {saved['steps']}", flush=True)
        restore(self, tensors, saved)

    fit._Run._restore = told  # type: ignore[method-assign]
    run(RESTORED, CONFIG, ENTRY, layout)


@pytest.mark.parametrize("environment", [{}, SHARED_OUT], ids=["whole models", "shared out"])
def test_when_one_process_dies_the_other_ends_and_the_next_run_goes_on(
    environment: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    layout = recovery_project(tmp_path)
    assert together(_die_at_the_third_step, layout, **environment) == [1, -signal.SIGKILL]
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("failed: ")]
    assert len(said) == 1 and "another of the 2 processes has ended" in said[0]
    assert not layout.compensation(RESTORED).exists() and not layout.training(RESTORED).exists()
    (state,) = layout.work.glob("compensate-*/*/rate-0.02.safetensors")
    assert '"steps": 2' in state.read_bytes()[:4096].decode("latin-1").replace("\\", "")
    assert together(_go_on, layout, **environment) == [0, 0]
    assert capfd.readouterr().out.count("goes on after step 2") == 2
    resumed, _ = _result(layout, RESTORED)
    layout.compensation(RESTORED).unlink()
    run(RESTORED, CONFIG, ENTRY, layout)
    _equal(_result(layout, RESTORED)[0], resumed)


def test_a_stage_that_several_processes_cannot_share_is_refused(tmp_path: Path) -> None:
    arguments = ["prune", "--model", "tiny", "--pruning", "wanda-0.5", "--params", str(ROOT / "params.yaml")]
    done = CliRunner(env=_rendezvous(1, 1)).invoke(app, arguments)
    assert isinstance(done.exception, BadInput)
    assert str(done.exception).startswith("prune runs in one process, and 2 were launched: several work together on")


def _command_project(root: Path) -> Layout:
    """The project of a command: params.yaml beside the data."""
    layout = recovery_project(root)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["models"] = {CELL.model: ENTRY.model_dump(exclude_none=True)}
    params["grid"] |= {"model": [CELL.model], "head_ratio": [0.5]}
    params["corpus"]["max_tokens"] = CONFIG.max_tokens
    params["compensate"] = CONFIG.model_dump(mode="json")
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    return layout


ACCELERATE = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
TORCHRUN = ["torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
TORCHRUN += ["--rdzv-endpoint", "127.0.0.1:0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "environment"), [(ACCELERATE, {}), (TORCHRUN, SHARED_OUT)], ids=["accelerate", "torchrun"]
)
def test_the_command_runs_under_a_launcher(launcher: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    layout = _command_project(tmp_path)
    stage = ["restorelcc", "compensate", "-m", CELL.model, "-p", str(CELL.pruning), "-r", "0.5"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    for command in (stage, [*launcher, "-m", *stage]):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        found, _ = _result(layout, RESTORED)
        if command is stage:
            alone = found
            layout.compensation(RESTORED).unlink()
            layout.log("compensate", RESTORED).unlink()
    _equal(found, alone)
    assert done.stderr.count("compensate pico wanda-0.5 0.5: 6 heads") == 1, "one of them speaks"
    assert layout.log("compensate", RESTORED).is_file()
