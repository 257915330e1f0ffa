"""A slimgpt model with its zeros against its sliced export, side by side: logits, file size, time of a forward.

python -m benchmarks.sliced [--sparsity 0.3] [--rounds 7] [--threads 1]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.random_llama import random_batches, random_llama
from restorelcc.core.pruning import parse_pruning
from restorelcc.core.slicing import sliced
from restorelcc.prune.prune import prune_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", default="0.3")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["RESTORELCC_PROGRESS"] = "0"
    masked = random_llama(width=512, ffn=1376, layers=4)
    prune_model(masked, parse_pruning(f"slimgpt-{options.sparsity}"), random_batches(8, 256))
    models = {"masked": masked, "sliced": sliced(masked)}
    tokens_BT = random_batches(4, 256)[0]
    seconds: dict[str, list[float]] = {name: [] for name in models}
    logits = {}
    for _ in range(options.rounds + 1):  # the first round warms up
        for name, model in models.items():
            start = time.perf_counter()
            with torch.no_grad():
                logits[name] = model(input_ids=tokens_BT).logits
            seconds[name].append(time.perf_counter() - start)
    difference = float((logits["masked"] - logits["sliced"]).abs().max())
    print(f"slimgpt-{options.sparsity}: largest difference of a logit {difference:.1e} (goal 1e-5)")
    for name, model in models.items():
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        print(f"{name}: {size / 2**20:6.1f} MiB, forward {median(seconds[name][1:]) * 1000:6.0f} ms")


if __name__ == "__main__":
    main()
