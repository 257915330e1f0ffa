"""Settings of training, shared by the sections whose stages train something, and the names of what can be trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from restorelcc.base.section import Name, Section, each_once

SiteName = Literal["q", "k", "v", "o", "gate", "up", "down"]
SITES: tuple[SiteName, ...] = ("q", "k", "v", "o", "gate", "up", "down")


Rate = Annotated[float, Field(gt=0, le=10)]


class FitConfig(Section):
    """AdamW with linear decay to zero; the loss is that of response tokens only."""

    learning_rates: tuple[Rate, ...] = Field(default=(1e-3,), min_length=1)  # several: lowest validation loss decides
    epochs: int = Field(default=3, ge=1, le=10_000)
    batch_size: int = Field(default=8, ge=1)  # examples of one optimizer step, over all devices
    accumulate: int = Field(default=1, ge=1)  # parts of a batch, one after another: less memory, same step
    task: Name | None = None  # only pairs of this task, for task-specific recovery; None: of all
    examples: int | None = Field(default=None, ge=1)  # at most so many training pairs, drawn by the seed; None: all
    max_tokens: int = Field(default=1024, ge=2)  # question + response
    max_gradient_norm: float = Field(default=1.0, gt=0)
    gradient_checkpointing: bool = False  # recompute the blocks in the backward pass: less memory, more time
    patience: int | None = Field(default=None, ge=1)  # epochs without a lower validation loss; then the best is kept
    checkpoint_steps: int = Field(default=100, ge=1)  # or a minute: between saved states, where a run goes on
    seed: int = Field(default=42, ge=0)

    @field_validator("learning_rates")
    @classmethod
    def _each_rate_once(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        return each_once(rates)
