"""A baseline's folder: its document, and a compensation of the pruned model or a whole checkpoint."""

from __future__ import annotations

DOCUMENT = "baseline.json"  # name, kind ("compensation" or "checkpoint"), parents, training
COMPENSATION = "compensation.safetensors"
MODEL = "model"
