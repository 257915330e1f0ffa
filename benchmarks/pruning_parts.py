"""What each part of `refined` wins back on stories260K, with nothing trained; three draws of the calibration stories.

    python -m benchmarks.pruning_parts [--real DIR]

Writes docs/results/cells/pruning-parts.json after every row and goes on where it was broken off; `make study` puts the
table into docs/results/recovery.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.results import interval, table
from restorelcc.base.documents import read_json, write_json
from restorelcc.base.prunings import parse_pruning
from restorelcc.models.biases import give_zero_biases
from restorelcc.models.checkpoints import load_model, load_tokenizer
from restorelcc.models.text import encode_documents
from restorelcc.stages.evaluate.perplexity import losses
from restorelcc.stages.prune import PruneConfig, RefinedConfig
from restorelcc.stages.prune.calibration import calibration_batches
from restorelcc.stages.prune.prune import prune_model

CELL = Path(__file__).parents[1] / "docs" / "results" / "cells" / "pruning-parts.json"
SEEDS, PATTERNS = (0, 1, 2), ("0.5", "2of4")
STORIES, TOKENS = 128, 512
DENSE, WANDA = "dense", "Wanda"
_PLAIN: dict[str, Any] = {"swaps": 0, "update": False, "bias": False}
# Title, pruner, and the parts of `refined`.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    WANDA: ("wanda", {}),
    "SparseGPT": ("sparsegpt", {}),
    "Wanda, bias": ("refined", _PLAIN | {"bias": True, "centred": False}),
    "Wanda, swaps": ("refined", _PLAIN | {"swaps": 100}),
    "Wanda, least squares": ("refined", _PLAIN | {"update": True}),
    "Wanda, swaps, least squares": ("refined", {"bias": False}),
    "SparseGPT, centred, least squares, bias": ("refined", {"start": "sparsegpt", "swaps": 0}),
    "SparseGPT, centred, swaps, least squares, bias": ("refined", {"start": "sparsegpt"}),
    "Wanda, swaps, least squares, bias, not centred": ("refined", {"centred": False}),
    "Wanda, centred, swaps, least squares, bias (`refined`)": ("refined", {}),
}


def stories(real: Path, name: str) -> list[str]:
    """The stories of one file."""
    lines = (real / "data" / "stories" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def measured(real: Path, title: str, pattern: str, seed: int) -> dict[str, float]:
    """Log-likelihood (nats) of all tokens of the held-out stories, their number, and the pruner's CPU seconds."""
    folder, cpu = real / "models" / "stories260K", torch.device("cpu")
    model, tokenizer, seconds = load_model(folder, torch.float32, cpu), load_tokenizer(folder), 0.0
    if title != DENSE:
        pruner, parts = ROWS[title]
        drawn = random.Random(seed).sample(stories(real, "calibration") + stories(real, "train"), STORIES)
        config = PruneConfig(samples=STORIES, sequence_length=TOKENS, seed=seed, refined=RefinedConfig(**parts))
        batches = calibration_batches(tokenizer, drawn, config, cpu)
        if parts.get("bias", pruner == "refined"):
            give_zero_biases(model)
        began = time.process_time()
        prune_model(model, parse_pruning(f"{pruner}-{pattern}"), batches, config)
        seconds = time.process_time() - began
    documents = encode_documents(tokenizer, stories(real, "heldout"), TOKENS)
    scored = [len(ids) - 1 for ids in documents]
    found = losses(model, documents, scored, title)
    return {"log_likelihood": -sum(found), "tokens": sum(scored), "cpu_seconds": round(seconds, 2)}


def run(real: Path) -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    found = read_json(CELL) if CELL.is_file() else {}
    wanted = [(DENSE, "", 0), *((row, pattern, seed) for row in ROWS for pattern in PATTERNS for seed in SEEDS)]
    for title, pattern, seed in wanted:
        name = f"{title}|{pattern}|{seed}"
        if name not in found:
            found[name] = measured(real, title, pattern, seed)
            write_json(CELL, found)
            print(name, f"{_perplexity(found[name]):.2f}", flush=True)


def _perplexity(cell: dict[str, float]) -> float:
    return math.exp(-cell["log_likelihood"] / cell["tokens"])


def section(found: dict[str, Any]) -> list[str]:
    """The table, in lines; a row that is not measured has dashes."""
    dense = found[f"{DENSE}||0"]

    def cells(title: str, pattern: str) -> list[str]:
        own = [found.get(f"{title}|{pattern}|{seed}") for seed in SEEDS]
        wanda = [found.get(f"{WANDA}|{pattern}|{seed}") for seed in SEEDS]
        if None in own + wanda:
            return ["-", "-", "-"]
        shares = [
            (each["log_likelihood"] - base["log_likelihood"]) / (dense["log_likelihood"] - base["log_likelihood"])
            for each, base in zip(own, wanda, strict=True)
        ]
        values = [f"{mean(map(_perplexity, own)):.2f}", "-" if title == WANDA else interval(shares)]
        return [*values, f"{max(each['cpu_seconds'] for each in own):.1f}"]

    titles = ("perplexity", "of Wanda's loss back, %", "CPU s")
    columns = ["nothing trained", *(f"{name}: {what}" for name in ("50 %", "2:4") for what in titles)]
    lines = [[title, *(value for pattern in PATTERNS for value in cells(title, pattern))] for title in ROWS]
    intro = (
        f"Perplexity per token on 200 held-out stories (dense: {_perplexity(dense):.2f}), and the share "
        "of the log-likelihood that Wanda loses and that is back: mean of three draws of 128 calibration stories and "
        "Student's 95 % interval. CPU seconds are those of the slowest draw, of one thread. "
        "`python -m benchmarks.pruning_parts` measures the table."
    )
    return ["## stories, pruning alone", "", intro, "", *table(columns, lines).splitlines(), ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("RESTORELCC_REAL") or Path(__file__).parents[2] / "shared/real")
    parser.add_argument("--real", type=Path, default=default)
    options = parser.parse_args()
    os.environ.setdefault("RESTORELCC_PROGRESS", "0")
    run(options.real)
    print("\n".join(section(read_json(CELL))))


if __name__ == "__main__":
    main()
