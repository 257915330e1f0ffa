"""`make bench-threads`: a pretraining step of the embedded model with 1, 2, ... torch threads, as ratios to one.

The thread counts take turns in one process, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import torch

from restorelcc.pipeline.params import load_params
from restorelcc.stages.dense.pretrain import build_model

_ROUNDS, _STEPS = 7, 5
_TOKENS = 18  # the longest document of a typical batch


def main() -> None:
    """Print the table and the value to set."""
    params = load_params(Path("params.yaml"))
    architecture, batch = params.dense.architecture, params.dense.pretrain.batch_size
    model = build_model(architecture, 256)
    tokens_BT = torch.randint(4, 256, (batch, min(_TOKENS, architecture.context)))
    counts = [count for count in (1, 2, 4, 8) if count <= (os.cpu_count() or 1)]
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for turn in range(_ROUNDS + 1):
        for count in counts:
            torch.set_num_threads(count)
            started = time.perf_counter()
            for _ in range(_STEPS):
                model(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
            if turn:  # the first round warms up
                seconds[count].append((time.perf_counter() - started) / _STEPS)
    one = statistics.median(seconds[1])
    print("threads  ms per step  relative to 1 thread")
    for count in counts:
        median = statistics.median(seconds[count])
        print(f"{count:7d}  {1000 * median:11.1f}  {median / one:20.2f}")
    best = min(counts, key=lambda count: statistics.median(seconds[count]))
    print(f"Set models.tiny.threads to {best} on this machine.")


if __name__ == "__main__":
    main()
