"""What the zeros are worth on this machine: bytes, memory and tokens per second of a restored model and its rivals.

Here: the `speed` section of params.yaml. The stage runs for the head ratios of `grid.speed`, by default for none.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from restorelcc.base.section import Section


class SpeedConfig(Section):
    """How long is measured. All versions of the model are in memory at once and take turns."""

    turns: int = Field(default=9, ge=3, le=1000)  # of every version
    prompt: int = Field(default=4, ge=1)  # tokens before those that are decoded
    new_tokens: int = Field(default=3, ge=1)  # decoded one by one in a turn; the turn's median counts
    prefill: int = Field(default=128, ge=1)  # tokens of a prompt that is read at once
    prefill_turns: int = Field(default=3, ge=3)  # of the turns, those that read it
    seed: int = Field(default=42, ge=0)  # of the tokens

    @model_validator(mode="after")
    def _prefill_has_its_turns(self) -> SpeedConfig:
        if self.prefill_turns > self.turns:
            raise ValueError(
                f"speed.prefill_turns is {self.prefill_turns}, and there are {self.turns} turns (speed.turns): give "
                "that many at most"
            )
        return self
