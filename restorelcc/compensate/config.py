"""Typed `compensate` section of params.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from restorelcc.core.section import Section

Rate = Annotated[float, Field(gt=0)]


class CompensateConfig(Section):
    """Training of beta and b (RestoreLCC eq. 8): AdamW with linear decay, loss on response tokens only."""

    learning_rates: tuple[Rate, ...] = Field(default=(1e-3,), min_length=1)  # several: least validation loss wins
    epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=8, ge=1)  # examples
    max_tokens: int = Field(default=1024, ge=2)  # question + response
    initial_std: float = Field(default=1e-3, ge=0)  # beta and b start from N(0, initial_std)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    seed: int = Field(default=42, ge=0)
