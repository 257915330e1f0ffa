"""Two models, each larger than the memory that a process may have, are walked side by side in it."""

import ctypes
import dataclasses
import gc
import os
import resource
import sys
from pathlib import Path

import pytest
import torch

from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.models.checkpoints import load_model
from restorelcc.stages.recover import RecoverConfig
from restorelcc.stages.recover.stage import run
from tests.fresh import fresh
from tests.recovery_project import CELL, ENTRY, recovery_project

MIB = 2**20
ALLOWED = 96 * MIB  # beside what the process has once it has reconstructed a tiny model
CONFIG = RecoverConfig(learning_rates=(0.01,), epochs=1, batch_size=8, max_tokens=16)
RECONSTRUCT = dataclasses.replace(CELL, recovery="reconstruct")


def _bounded(action: str, root: Path) -> None:
    """In a process of its own: reconstruct, or load a model whole, with ALLOWED more than the process has by then.

    RLIMIT_DATA counts private writable memory, as for pruning (tests/stages/prune/test_memory.py).
    """
    os.environ["RESTORELCC_PROGRESS"] = "0"
    run(RECONSTRUCT, CONFIG, ENTRY, recovery_project(root / "tiny", pairs=4))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    taken = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    limit = int(taken.split()[1]) * 1024 + ALLOWED
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if action == "reconstruct":
        run(RECONSTRUCT, CONFIG, ENTRY, Layout(root))
    else:
        load_model(Layout(root).dense(CELL), torch.float32, torch.device("cpu"))


def _is_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "alloc" in str(error).lower()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a process's data against RLIMIT_DATA")
def test_models_larger_than_the_memory_allowed_are_reconstructed(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 30, "head_dim": 64}
    layout = recovery_project(tmp_path, pairs=4, **sizes)
    size = (layout.dense(CELL) / "model.safetensors").stat().st_size
    assert size > ALLOWED
    with pytest.raises((BadInput, MemoryError, RuntimeError), check=_is_of_memory):
        fresh(_bounded, "load", tmp_path)
    fresh(_bounded, "reconstruct", tmp_path)
    assert (layout.recovered(RECONSTRUCT) / "model" / "model.safetensors").stat().st_size > ALLOWED
