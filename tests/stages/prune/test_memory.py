"""A model larger than the memory that a process may have is pruned in it; to load it whole fails there."""

import ctypes
import gc
import os
import resource
import sys
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from transformers import LlamaConfig, LlamaForCausalLM

from restorelcc.base.cell import Cell
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.prunings import parse_pruning
from restorelcc.models.checkpoints import load_model
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.stages.prune import PruneConfig
from restorelcc.stages.prune.budget import memory_budget
from tests import pico
from tests.fresh import fresh
from tests.stages.prune.project import CONFIG, project, prune

GIB, MIB = 2**30, 2**20
ALLOWED = 48 * MIB  # beside what the process has once it has pruned a tiny model


def _bounded(action: str, root: Path) -> None:
    """In a process of its own: prune the model, or load it whole, with ALLOWED more than the process has by then.

    RLIMIT_DATA counts private writable memory: the heap and what torch and Python allocate, not files mapped for
    reading. It also counts what was freed and still lies in the heap, which differs from run to run: that goes back to
    the system first, and whatever the stage imports or starts but once is there before the limit is set.
    """
    os.environ["RESTORELCC_PROGRESS"] = "0"
    layout, dense = Layout(root), Layout(root).dense(Cell("pico"))
    prune(project(root / "tiny", pico.pico()), "wanda-0.5")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    taken = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    limit = int(taken.split()[1]) * 1024 + ALLOWED
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if action == "prune":
        prune(layout, "wanda-0.5", CONFIG.model_copy(update={"samples": 32}))
    else:
        load_model(dense, torch.float32, torch.device("cpu"))


def _is_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "alloc" in str(error).lower() or "unable to mmap" in str(error)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a process's data against RLIMIT_DATA")
def test_a_model_larger_than_the_memory_allowed_is_pruned(tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=28,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=pico.VOCABULARY,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    layout = project(tmp_path, model)
    dense = layout.dense(Cell("pico"))
    (dense / "model.safetensors").unlink()
    model.save_pretrained(dense, max_shard_size="3MB")
    files = list(dense.glob("*.safetensors"))
    assert len(files) > 3
    assert sum(path.stat().st_size for path in files) > ALLOWED, "in bfloat16; it is pruned in float32, twice that"
    with pytest.raises((MemoryError, RuntimeError, BadInput), check=_is_of_memory):
        fresh(_bounded, "load", tmp_path)
    fresh(_bounded, "prune", tmp_path)
    weight = stored_tensors(layout.pruned(Cell("pico", "wanda-0.5")))["model.layers.27.mlp.down_proj.weight"]
    assert weight.dtype == torch.bfloat16
    assert ((weight.read() == 0).sum(dim=1) == 512).all()


def _llama_7b() -> LlamaForCausalLM:
    with init_empty_weights():
        return LlamaForCausalLM(LlamaConfig())  # the defaults are LLaMA-7B's shapes


def test_the_budget_adds_up_what_a_7b_model_needs() -> None:
    budget = memory_budget(_llama_7b(), parse_pruning("sparsegpt-0.5"), PruneConfig(), torch.float32)
    assert budget.outside_blocks == 4 * (2 * 32000 * 4096 + 4096)
    assert budget.block == 4 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096)
    assert budget.hidden_states == 4 * 128 * 2048 * 4096
    assert budget.gram == 4 * (3 * 4096**2 + 11008**2)
    assert budget.surgeon == 4 * 4 * (11008**2 + 4096 * 11008)
    refined = memory_budget(_llama_7b(), parse_pruning("refined-0.5"), PruneConfig(), torch.float32)
    assert refined.surgeon == 4 * (3 * 4096**2 + 7 * 2 * 11008 * 4096)  # of the FFN's first linears
    assert refined.total < budget.total + 4 * 11008**2, "one Gram matrix more than SparseGPT"


@pytest.mark.parametrize("pruning", ["magnitude-0.5", "wanda-0.5", "sparsegpt-0.5", "refined-0.5", "slimgpt-0.2"])
def test_a_7b_model_needs_less_than_24_gib_and_less_than_its_own_bfloat16_weights(pruning: str) -> None:
    model = _llama_7b()
    total = memory_budget(model, parse_pruning(pruning), PruneConfig(), torch.float32).total
    assert total < 24 * GIB
    assert total < 2 * model.num_parameters()


def test_the_budget_grows_with_the_calibration_and_not_with_the_layers() -> None:
    pruning, config = parse_pruning("wanda-0.5"), PruneConfig(samples=8, sequence_length=64)
    less = memory_budget(pico.pico(), pruning, config, torch.float32)
    assert memory_budget(pico.pico(num_hidden_layers=9), pruning, config, torch.float32) == less
    more = memory_budget(pico.pico(), pruning, PruneConfig(samples=16, sequence_length=64), torch.float32)
    assert more.hidden_states == 2 * less.hidden_states
