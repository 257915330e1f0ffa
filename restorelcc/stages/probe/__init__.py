"""Which heads matter: scores of every head, and their ranks.

Here: the `probe` section of params.yaml.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from restorelcc.base.section import Section

Score = Literal["paper", "relational", "causal", "gradient", "random", "mse", "kl", "energy"]


class ProbeConfig(Section):
    """Which scores are computed and which one ranks (docs/probing.md); defaults are the paper's."""

    score: Score = "paper"  # the column of heads.parquet that ranks
    # Further columns that are computed; the others are null. causal runs the pruned model once per head.
    scores: tuple[Score, ...] = ()
    components: int = Field(default=1, ge=1)  # K: main lost components added to the pruned activation
    solver: Literal["auto", "newton", "adam"] = "auto"  # of paper; adam is the literal recipe, auto takes it if D <= 16
    steps: int = Field(default=200, ge=1)  # full-batch Adam steps
    learning_rate: float = Field(default=0.01, gt=0, le=10)
    heldout_share: float = Field(default=0.3, gt=0, lt=1)  # of the tuples; a pair is never split
    margin_samples: int = Field(
        default=256, ge=1
    )  # tuples, evenly spread, whose answer margin causal, gradient measure
    max_tokens: int = Field(default=1024, ge=2)  # question + response, for causal and gradient
    # Tokens of one batch of theirs at most; fewer where the vocabulary is large.
    token_budget: int = Field(default=4096, ge=1)
    seed: int = Field(default=42, ge=0)

    @model_validator(mode="after")
    def _no_score_twice(self) -> ProbeConfig:
        if len(set(self.scores)) < len(self.scores):
            raise ValueError("probe.scores names a score twice: remove one")
        return self

    @property
    def computed(self) -> tuple[Score, ...]:
        """The score that ranks, and the further ones."""
        return tuple(dict.fromkeys((self.score, *self.scores)))
