"""Settings that many entries of `models` share, by name: `preset: paper` in params.yaml stands for all of these.

What the entry itself says goes before the preset, key by key. `restorelcc plan --model NAME` prints what came of it.
"""

from __future__ import annotations

from typing import Any

# The settings of RestoreLCC (arXiv 2510.21834) for the recovery of general abilities: calibration on 128 sequences of
# 2,048 tokens of C4, 2,000 Alpaca instructions, the first 1,000 of them for probing, seven zero-shot tasks, and
# WikiText-2 perplexity at 2,048 tokens.
PAPER: dict[str, Any] = {
    "sequence_length": 2048,
    "data": {"calibration": "c4", "instructions": "alpaca", "heldout": "wikitext"},
    "tasks": ["paper-7"],
    "settings": {
        "corpus": {"calibration": 128, "train": 2000, "valid": 200, "contrast": 1000},
        "prune": {"samples": 128},
        "compensate": {"learning_rates": [1e-3], "epochs": 3, "batch_size": 8},
        "evaluate": {"batch_size": 8},
    },
}
PRESETS: dict[str, dict[str, Any]] = {"paper": PAPER}


def over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` put over it, key by key at every depth."""
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = over(base[key], value) if nested else value
    return merged
