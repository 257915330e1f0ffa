"""Peak memory of the prune stage on a random checkpoint of about 1 GB, against the bound that it must stay under.

    python -m benchmarks.prune_memory [--prunings wanda-0.5 sparsegpt-0.5] [--layers 20] [--threads 1]

The bound is the size of the weights plus the activations of two blocks. Each run is a process of its own; its peak is
the largest resident set the kernel saw, with Python and torch in it. The last run has max_position_embeddings 131,072.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import tempfile
import time
from pathlib import Path

WIDTH, FFN, SEQUENCES, LENGTH = 1024, 2816, 8, 256


def _write_project(root: Path, layers: int, positions: int) -> int:
    """A project with a random dense checkpoint; returns the bytes of its weights."""
    from benchmarks.random_llama import VOCABULARY, random_llama
    from restorelcc.core.cell import Cell
    from restorelcc.io.checkpoints import save_checkpoint
    from restorelcc.io.layout import Layout
    from restorelcc.io.tables import write_texts
    from tests.pico import word_tokenizer

    layout, cell, rng = Layout(root), Cell("random"), random.Random(0)
    model = random_llama(width=WIDTH, ffn=FFN, layers=layers, heads=16, positions=positions)
    save_checkpoint(layout.dense(cell), model, word_tokenizer(VOCABULARY))
    texts = [" ".join(f"w{rng.randrange(3, VOCABULARY - 1)}" for _ in range(LENGTH)) for _ in range(SEQUENCES)]
    write_texts(layout.corpus(cell) / "calibration.parquet", texts)
    return sum(path.stat().st_size for path in layout.dense(cell).glob("*.safetensors"))


def _prune(root: Path, pruning: str, threads: int) -> None:
    from restorelcc.core.cell import Cell
    from restorelcc.core.model_entry import ModelEntry
    from restorelcc.io.layout import Layout
    from restorelcc.prune.config import PruneConfig
    from restorelcc.prune.stage import run

    start, before = time.perf_counter(), _peak()
    entry = ModelEntry(source="microworld", threads=threads, device="cpu")
    config = PruneConfig(samples=SEQUENCES, sequence_length=LENGTH, token_budget=2 * LENGTH)
    run(Cell("random", pruning), config, entry, Layout(root))
    print(
        f"{pruning}: peak {_peak() / 2**20:,.0f} MiB ({before / 2**20:,.0f} MiB of it before the stage began), "
        f"{time.perf_counter() - start:.0f} s",
        flush=True,
    )


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prunings", nargs="+", default=["wanda-0.5", "sparsegpt-0.5"])
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    os.environ["RESTORELCC_PROGRESS"] = "0"
    fresh = multiprocessing.get_context("spawn")
    activations = 2 * SEQUENCES * LENGTH * WIDTH * 4
    runs = [(2048, options.prunings), (131_072, options.prunings[:1])]
    for positions, prunings in runs:
        with tempfile.TemporaryDirectory() as folder, fresh.Pool(1, maxtasksperchild=1) as pool:
            size = pool.apply(_write_project, (Path(folder), options.layers, positions))
            print(
                f"max_position_embeddings {positions:,}: weights {size / 2**20:,.0f} MiB + activations of two blocks "
                f"{activations / 2**20:,.0f} MiB = bound {(size + activations) / 2**20:,.0f} MiB",
                flush=True,
            )
            for pruning in prunings:
                pool.apply(_prune, (Path(folder), pruning, options.threads))


if __name__ == "__main__":
    main()
