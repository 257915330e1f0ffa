"""Typed `compensate` section of params.yaml."""

from __future__ import annotations

from pydantic import Field

from restorelcc.core.fit_config import FitConfig


class CompensateConfig(FitConfig):
    """Training of beta and b (RestoreLCC eq. 8); the defaults are the paper's."""

    initial_std: float = Field(default=1e-3, ge=0)  # beta and b start from N(0, initial_std)
