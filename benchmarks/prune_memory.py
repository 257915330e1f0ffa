"""Peak memory of the prune stage on a random checkpoint of about 1 GB, against the bound that it must stay under.

    python -m benchmarks.prune_memory [--prunings wanda-0.5 sparsegpt-0.5] [--layers 20] [--at-once 2] [--write FILE.md]

The bound is the size of the weights plus the activations of two blocks. Each run is a process of its own with one
thread; its peak is the largest resident set the kernel saw, with Python and torch in it. The last run has
max_position_embeddings 131,072 in its config, which must change neither the peak nor a byte of what is written.
Exits with 1 when a peak is over the bound.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import measured_on, table, write_section

WIDTH, FFN, SEQUENCES, LENGTH = 1024, 2816, 8, 256
POSITIONS = {"random": 2048, "long": 131_072}  # by name of the model
PRUNINGS = ["magnitude-0.5", "wanda-0.5", "sparsegpt-0.5", "slimgpt-0.2"]


@dataclass(frozen=True)
class Peak:
    """What one process used, in bytes, and what it was expected to use beside what it had before the stage began."""

    model: str
    pruning: str
    before: int
    peak: int
    budget: int
    seconds: float
    digest: str


def _write_project(root: Path, layers: int) -> int:
    """A project with a random dense checkpoint, twice: they differ in the config only. Returns the bytes of weights."""
    from benchmarks.random_llama import VOCABULARY, random_llama
    from restorelcc.base.cell import Cell
    from restorelcc.base.layout import Layout
    from restorelcc.base.tables import write_texts
    from restorelcc.models.checkpoints import save_checkpoint
    from tests.pico import word_tokenizer

    layout, first, rng = Layout(root), Cell("random"), random.Random(0)
    model = random_llama(width=WIDTH, ffn=FFN, layers=layers, heads=16, positions=POSITIONS["random"])
    save_checkpoint(layout.dense(first), model, word_tokenizer(VOCABULARY))
    texts = [" ".join(f"w{rng.randrange(3, VOCABULARY - 1)}" for _ in range(LENGTH)) for _ in range(SEQUENCES)]
    for name, positions in POSITIONS.items():
        cell = Cell(name)
        write_texts(layout.corpus(cell) / "calibration.parquet", texts)
        if cell != first:
            shutil.copytree(layout.dense(first), layout.dense(cell), copy_function=os.link)
            config = layout.dense(cell) / "config.json"
            changed = json.loads(config.read_text()) | {"max_position_embeddings": positions}
            config.unlink()  # it is a link to the first one's
            config.write_text(json.dumps(changed))
    return sum(path.stat().st_size for path in layout.dense(first).glob("*.safetensors"))


def _prune(root: Path, name: str, pruning: str) -> Peak:
    import torch

    from restorelcc.base.cell import Cell
    from restorelcc.base.digest import model_digest
    from restorelcc.base.layout import Layout
    from restorelcc.base.model_entry import ModelEntry
    from restorelcc.base.prunings import parse_pruning
    from restorelcc.models.runtime import return_large_buffers
    from restorelcc.sparsity.streaming import empty_model
    from restorelcc.stages.prune import PruneConfig
    from restorelcc.stages.prune.budget import memory_budget
    from restorelcc.stages.prune.stage import run

    layout, cell = Layout(root), Cell(name, pruning)
    return_large_buffers()  # before any model, as in a process that runs the stage and nothing else
    network = empty_model(layout.dense(cell), torch.float32)  # so that the model's code is loaded
    start, before = time.perf_counter(), peak_memory()
    config = PruneConfig(samples=SEQUENCES, sequence_length=LENGTH, token_budget=2 * LENGTH)
    run(cell, config, ModelEntry(source="microworld", threads=1, device="cpu"), layout)
    seconds, peak = time.perf_counter() - start, peak_memory()
    budget = memory_budget(network, parse_pruning(pruning), config, torch.float32).total
    (layout.pruned(cell) / "config.json").unlink()  # the one difference between the two models
    digest = model_digest(layout.pruned(cell))
    shutil.rmtree(layout.pruned(cell))
    return Peak(name, pruning, before, peak, budget, seconds, digest)


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def _report(peak: Peak, bound: int) -> str:
    verdict = "within the bound" if peak.peak <= bound else "OVER THE BOUND"
    return (
        f"{peak.pruning:14s} max_position_embeddings {POSITIONS[peak.model]:>7,}: peak {_mib(peak.peak)} ({verdict}), "
        f"{_mib(peak.before)} of it before the stage began, {_mib(peak.peak - peak.before)} more "
        f"(estimate {_mib(peak.budget)}), {peak.seconds:.0f} s"
    )


def _check(peaks: list[Peak], bound: int) -> list[str]:
    """What does not hold, one sentence each."""
    wrong = [f"{peak.pruning} peaks over the bound" for peak in peaks if peak.peak > bound]
    second = next(peak for peak in peaks if peak.model == "long")
    first = next(peak for peak in peaks if (peak.model, peak.pruning) == ("random", second.pruning))
    if first.digest != second.digest:
        wrong.append("max_position_embeddings changes what is written")
    if abs(first.peak - second.peak) > 0.02 * bound:
        wrong.append("max_position_embeddings changes the peak")
    return wrong


def _markdown(peaks: list[Peak], size: int, activations: int) -> str:
    columns = ["pruning", "max_position_embeddings", "peak", "before the stage", "more than that", "estimate"]
    rows = [
        [p.pruning, f"{POSITIONS[p.model]:,}", *map(_mib, (p.peak, p.before, p.peak - p.before, p.budget))]
        for p in peaks
    ]
    return (
        f"A random float32 Llama, {_mib(size)} of weights (width {WIDTH}, FFN {FFN}), {SEQUENCES} x {LENGTH} "
        f"calibration tokens. Bound: the weights and the activations of two blocks, {_mib(activations)}, together "
        f"{_mib(size + activations)}; a peak has Python and torch in it. Both models write the same bytes. `estimate` "
        f"is what `restorelcc/stages/prune/budget.py` says of the column before it.\n\n{measured_on(1)}\n\n"
        f"{table(columns, rows)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prunings", nargs="+", default=PRUNINGS)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--at-once", type=int, default=2, help="processes at a time; each has a peak of its own")
    parser.add_argument("--write", type=Path, help="a Markdown file whose section is written")
    options = parser.parse_args()
    os.environ |= {"RESTORELCC_PROGRESS": "0", "OMP_NUM_THREADS": "1"}
    fresh = multiprocessing.get_context("spawn")
    activations = 2 * SEQUENCES * LENGTH * WIDTH * 4
    last = "sparsegpt-0.5" if "sparsegpt-0.5" in options.prunings else options.prunings[-1]
    runs = [("random", pruning) for pruning in options.prunings] + [("long", last)]
    runs.sort(key=lambda run: not run[1].startswith(("sparsegpt", "slimgpt")))  # the long ones first
    with tempfile.TemporaryDirectory() as folder, fresh.Pool(options.at_once, maxtasksperchild=1) as pool:
        size = pool.apply(_write_project, (Path(folder), options.layers))
        bound = size + activations
        print(
            f"weights {_mib(size)} + activations of two blocks {_mib(activations)} = bound {_mib(bound)}; "
            "peaks have Python and torch in them",
            flush=True,
        )
        peaks = []
        for peak in pool.imap_unordered(functools.partial(_prune_one, Path(folder)), runs, chunksize=1):
            print(_report(peak, bound), flush=True)
            peaks.append(peak)
    peaks.sort(key=lambda peak: (list(POSITIONS).index(peak.model), options.prunings.index(peak.pruning)))
    if options.write:
        write_section(options.write, "prune_memory", "Peak memory", _markdown(peaks, size, activations))
    if wrong := _check(peaks, bound):
        sys.exit("; ".join(wrong))
    print("every peak is within the bound; max_position_embeddings changed neither a peak nor a byte")


def _prune_one(root: Path, run: tuple[str, str]) -> Peak:
    return _prune(root, *run)


if __name__ == "__main__":
    main()
