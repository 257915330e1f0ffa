"""Typed `baseline` section of params.yaml."""

from __future__ import annotations

from pydantic import Field

from restorelcc.core.fit_config import FitConfig


class BaselineConfig(FitConfig):
    """Other ways to recover, trained on the same pairs with the same learning rates to choose from."""

    head_ratio: float = Field(default=0.25, gt=0, le=1)  # random: share of the heads
    initial_std: float = Field(default=1e-3, ge=0)  # of trained head offsets
    calibration_tokens: int = Field(default=2048, ge=2)  # longest calibration sequence of meanshift
