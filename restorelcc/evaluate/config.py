"""Typed `evaluate` section of params.yaml."""

from __future__ import annotations

from pydantic import Field

from restorelcc.core.section import Section


class EvaluateConfig(Section):
    """Evaluation by lm-eval and perplexity, and the statistics over items."""

    batch_size: int = Field(default=64, ge=1)  # requests of one lm-eval batch
    limit: int | None = Field(default=None, ge=1)  # items per task; None is all of them
    perplexity_tokens: int = Field(default=2048, ge=2)  # longest sequence that perplexity is measured on
    bootstrap_samples: int = Field(default=10_000, ge=100)
    seed: int = Field(default=42, ge=0)
