"""Training of the paper's compensation for the best-ranked heads.

Here: the `compensate` section of params.yaml.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from restorelcc.base.section import Section
from restorelcc.training.config import FitConfig, SiteName

Part = Literal["beta", "bias"]


class DistillConfig(Section):
    """Learn from the dense model's next-token probabilities at response tokens, as well as from the responses."""

    weight: float = Field(default=0.5, gt=0, le=1)  # of the divergence; the responses have the rest
    top_k: int = Field(default=64, ge=1)  # most probable tokens that are kept, the others are one class


class CompensateConfig(FitConfig):
    """Training of beta and b (RestoreLCC eq. 8); the defaults are the paper's."""

    initial_std: float = Field(default=1e-3, ge=0)  # beta and b start from N(0, initial_std)
    # Where: o is the chosen heads; each other name is a free bias on that linear of every block.
    sites: tuple[SiteName, ...] = Field(default=("o",), min_length=1)
    parts: tuple[Part, ...] = Field(default=("beta", "bias"), min_length=1)  # of eq. 8 that train; one alone: ablation
    # What training starts from: "normal" is initial_std; "meanshift" what was lost on average; "ridge" the offsets that
    # bring the out-projections' mean output closest to the dense model's.
    start: Literal["normal", "meanshift", "ridge"] = "normal"
    ridge: float = Field(default=0.01, gt=0)  # start: ridge; damping, as a share of the mean squared weight column
    distill: DistillConfig | None = None
    # head_ratio: auto takes the smallest of these within one standard error of the best on the validation pairs.
    auto_ratios: tuple[float, ...] = Field(default=(0.05, 0.1, 0.25, 0.5, 1.0), min_length=1)

    @field_validator("sites", "parts")
    @classmethod
    def _once(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(values)) < len(values):
            raise ValueError("a name is listed twice, remove one")
        return values

    @field_validator("auto_ratios")
    @classmethod
    def _shares(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < value <= 1 for value in values):
            raise ValueError("every ratio must be above 0 and at most 1")
        return tuple(sorted(values))
