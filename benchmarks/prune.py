"""Time of each pruner as a multiple of one plain calibration forward of the same model, measured in turns.

    python -m benchmarks.prune [--rounds 3] [--threads 1] [--write FILE.md]

Goals on the CPU: Wanda <= 2.5, SparseGPT <= 6, refined <= 8. The model is small; tokens per column (32) and the share
of tokens that errors are measured on (1 in 128) are about those of a 7B model with the default calibration of
128 x 2,048 tokens, or less favourable.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.clock import wall_seconds
from benchmarks.random_llama import random_batches, random_llama
from benchmarks.results import measured_on, table, write_section
from restorelcc.base.prunings import parse_pruning
from restorelcc.models.biases import give_zero_biases
from restorelcc.stages.prune import PruneConfig
from restorelcc.stages.prune.prune import prune_model

PRUNINGS = ("magnitude-0.5", "wanda-0.5", "wanda-2of4", "sparsegpt-0.5", "sparsegpt-2of4", "refined-0.5",
            "refined-2of4", "slimgpt-0.2")  # fmt: skip
GOALS = {"wanda-0.5": 2.5, "wanda-2of4": 2.5, "sparsegpt-0.5": 6.0, "sparsegpt-2of4": 6.0} | {
    "refined-0.5": 8.0,
    "refined-2of4": 8.0,
}
WIDTH, FFN, LAYERS, SEQUENCES, LENGTH = 384, 1024, 4, 32, 384


@torch.no_grad()
def _forward(model: PreTrainedModel, batches_BT: list[Tensor]) -> None:
    for tokens_BT in batches_BT:
        model.base_model(input_ids=tokens_BT, use_cache=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, help="a Markdown file whose section is written")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["RESTORELCC_PROGRESS"] = "0"
    sizes = {"width": WIDTH, "ffn": FFN, "layers": LAYERS}
    batches = random_batches(SEQUENCES, LENGTH)
    config = PruneConfig(error_tokens=max(1, SEQUENCES * LENGTH // 128))
    _forward(random_llama(**sizes), batches)  # warm up
    forwards: list[float] = []
    multiples: dict[str, list[float]] = {name: [] for name in PRUNINGS}
    for number in range(options.rounds):
        for name in PRUNINGS:
            # A forward right before each pruner, so that both see the machine in the same state.
            model = random_llama(**sizes)
            if name.startswith("refined"):
                give_zero_biases(model)
            plain = wall_seconds(lambda model=model: _forward(model, batches))
            taken = wall_seconds(
                lambda model=model, name=name: prune_model(model, parse_pruning(name), batches, config)
            )
            forwards.append(plain)
            multiples[name].append(taken / plain)
        print(f"round {number + 1} of {options.rounds} done", flush=True)
    print(f"one plain calibration forward ({SEQUENCES} x {LENGTH} tokens): {median(forwards):.2f} s")
    for name, values in multiples.items():
        print(f"{name:16s} {median(values):5.2f} x  ({min(values):.2f} .. {max(values):.2f})  {_goal(name)}")
    if options.write:
        write_section(options.write, "prune", "Time", _markdown(forwards, multiples, options.threads))


def _goal(name: str) -> str:
    return f"goal <= {GOALS[name]:g}" if name in GOALS else ""


def _markdown(forwards: list[float], multiples: dict[str, list[float]], threads: int) -> str:
    rows = [
        [name, f"{median(values):.2f}", f"{min(values):.2f} .. {max(values):.2f}", _goal(name)]
        for name, values in multiples.items()
    ]
    return (
        f"Time of a pruner as a multiple of one plain calibration forward right before it ({SEQUENCES} x {LENGTH} "
        f"tokens, median {median(forwards):.2f} s), on a random float32 Llama of {LAYERS} layers (width {WIDTH}, FFN "
        f"{FFN}). Median and range of {len(forwards) // len(multiples)} rounds.\n\n{measured_on(threads)}\n\n"
        f"{table(['pruning', 'x forward', 'range', 'goal'], rows)}"
    )


if __name__ == "__main__":
    main()
