"""Typed `prune` section of params.yaml."""

from __future__ import annotations

from pydantic import Field

from restorelcc.core.section import Section


class PruneConfig(Section):
    """Calibration of the pruners; which pruner and how much comes from grid.pruning."""

    samples: int = Field(default=128, ge=1)  # calibration sequences
    sequence_length: int = Field(default=2048, ge=2)  # tokens at most per sequence; never max_position_embeddings
    token_budget: int = Field(default=4096, ge=1)  # tokens of one calibration batch
    seed: int = Field(default=42, ge=0)
