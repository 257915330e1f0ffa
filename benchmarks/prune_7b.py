"""Peak memory of pruning two blocks of a 7B model's shapes, against the estimate, and the estimate for all 32.

    python -m benchmarks.prune_7b [--pruning sparsegpt-0.5] [--layers 2] [--threads 2] [--write FILE.md]

The checkpoint is random, bfloat16 and in shards; it is pruned in float32, as on any CPU. Blocks are in memory one at a
time, so more of them change time and disk only; the calibration is short (8 x 256 tokens), to be a matter of minutes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import tempfile
import time
from pathlib import Path

from benchmarks.prune_memory import peak_memory
from benchmarks.results import measured_on, table, write_section

SEQUENCES, LENGTH, GIB = 8, 256, 2**30


def _write_project(root: Path, layers: int) -> int:
    """A project with a random checkpoint of LLaMA-7B's shapes but fewer layers. Returns the bytes of its weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from restorelcc.base.cell import Cell
    from restorelcc.base.layout import Layout
    from restorelcc.base.tables import write_texts
    from tests.pico import word_tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(num_hidden_layers=layers)  # the defaults are LLaMA-7B's shapes
    model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    layout, cell, rng = Layout(root), Cell("random"), random.Random(0)
    model.save_pretrained(layout.dense(cell), max_shard_size="500MB")
    word_tokenizer(1000).save_pretrained(layout.dense(cell))
    texts = [" ".join(f"w{rng.randrange(3, 999)}" for _ in range(LENGTH)) for _ in range(SEQUENCES)]
    write_texts(layout.corpus(cell) / "calibration.parquet", texts)
    return sum(path.stat().st_size for path in layout.dense(cell).glob("*.safetensors"))


def _prune(root: Path, pruning: str, threads: int) -> tuple[int, int, float]:
    """(peak before the stage, peak after, seconds)."""
    import torch

    from restorelcc.base.cell import Cell
    from restorelcc.base.layout import Layout
    from restorelcc.base.model_entry import ModelEntry
    from restorelcc.models.runtime import return_large_buffers
    from restorelcc.sparsity.streaming import empty_model
    from restorelcc.stages.prune import PruneConfig
    from restorelcc.stages.prune.stage import run

    layout, cell = Layout(root), Cell("random", pruning)
    return_large_buffers()  # before any model, as in a process that runs the stage and nothing else
    empty_model(layout.dense(cell), torch.float32)  # so that the model's code is loaded
    start, before = time.perf_counter(), peak_memory()
    config = PruneConfig(samples=SEQUENCES, sequence_length=LENGTH, token_budget=2 * LENGTH)
    run(cell, config, ModelEntry(source="microworld", threads=threads, device="cpu"), layout)
    return before, peak_memory(), time.perf_counter() - start


def _estimates(pruning: str, layers: int) -> tuple[int, int, int]:
    """Estimates for what is measured and for LLaMA-7B with the default calibration, and the latter's bfloat16 size."""
    import torch
    from accelerate import init_empty_weights
    from transformers import LlamaConfig, LlamaForCausalLM

    from restorelcc.base.prunings import parse_pruning
    from restorelcc.stages.prune import PruneConfig
    from restorelcc.stages.prune.budget import memory_budget

    with init_empty_weights():
        small, whole = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers)), LlamaForCausalLM(LlamaConfig())
    short = PruneConfig(samples=SEQUENCES, sequence_length=LENGTH, token_budget=2 * LENGTH)
    here = memory_budget(small, parse_pruning(pruning), short, torch.float32).total
    return (
        here,
        memory_budget(whole, parse_pruning(pruning), PruneConfig(), torch.float32).total,
        2 * whole.num_parameters(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pruning", default="sparsegpt-0.5")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, help="a Markdown file whose section is written")
    options = parser.parse_args()
    os.environ |= {"RESTORELCC_PROGRESS": "0", "OMP_NUM_THREADS": str(options.threads)}
    fresh = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, fresh.Pool(1, maxtasksperchild=1) as pool:
        size = pool.apply(_write_project, (Path(folder), options.layers))
        before, peak, seconds = pool.apply(_prune, (Path(folder), options.pruning, options.threads))
        here, whole, whole_size = pool.apply(_estimates, (options.pruning, options.layers))
    rows = [
        [f"{options.layers} blocks of LLaMA-7B's shapes, {SEQUENCES} x {LENGTH} tokens", size, peak - before, here],
        ["LLaMA-7B, 128 x 2,048 tokens", whole_size, None, whole],
    ]
    cells = [[str(what), *("-" if n is None else f"{n / GIB:.1f} GiB" for n in numbers)] for what, *numbers in rows]
    columns = [f"{options.pruning}, pruned in float32", "bfloat16 weights", "peak measured", "estimate"]
    body = (
        f"Peaks are beside the {before / GIB:.1f} GiB that Python, torch and the model's code take; the measured run "
        f"took {seconds:.0f} s.\n\n{measured_on(options.threads)}\n\n{table(columns, cells)}"
    )
    print(body)
    if options.write:
        write_section(options.write, "prune_7b", "A 7B model's blocks", body)


if __name__ == "__main__":
    main()
