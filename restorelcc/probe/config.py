"""Typed `probe` section of params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from restorelcc.core.section import Section


class ProbeConfig(Section):
    """The contrastive probe; defaults are the paper's."""

    score: Literal["paper", "energy", "random"] = "paper"  # the column of heads.parquet that ranks
    components: int = Field(default=1, ge=1)  # K: main lost components added to the pruned activation
    steps: int = Field(default=200, ge=1)  # full-batch Adam steps
    learning_rate: float = Field(default=0.01, gt=0)
    heldout_share: float = Field(default=0.3, gt=0, lt=1)  # of the tuples; a pair is never split
    seed: int = Field(default=42, ge=0)
