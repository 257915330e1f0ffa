"""Settings that many entries of `models` share, by name: `preset: paper` in params.yaml stands for all of these.

What the entry itself says goes before the preset, key by key. `restorelcc plan --model NAME` prints what came of it.
"""

from __future__ import annotations

from typing import Any

# The data and tasks of RestoreLCC (arXiv 2510.21834) for the recovery of general abilities: C4, Alpaca, seven zero-shot
# tasks and WikiText-2 perplexity. How much of them and how it is trained - 128 sequences of 2,048 tokens, 2,000 pairs,
# 1,000 of them for probing, AdamW at 1e-3 for 3 epochs of batches of 8 - are the defaults of the sections.
PAPER: dict[str, Any] = {
    "data": {"calibration": "c4", "instructions": "alpaca", "heldout": "wikitext"},
    "tasks": ["paper-7"],
}
PRESETS: dict[str, dict[str, Any]] = {"paper": PAPER}


def over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` put over it, key by key at every depth."""
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = over(base[key], value) if nested else value
    return merged
