"""Every other way to recover a pruned model: biases, weights under the mask, adapters, reconstruction.

Here: the `recover` section of params.yaml.
"""

from __future__ import annotations

from pydantic import Field, field_validator

from restorelcc.base.section import each_once
from restorelcc.training.config import SITES, FitConfig, SiteName


class RecoverConfig(FitConfig):
    """Other ways to recover, trained on the same pairs with the same learning rates to choose from."""

    head_ratio: float = Field(default=0.25, gt=0, le=1)  # random, lofit: share of the heads
    initial_std: float = Field(default=1e-3, ge=0, le=100)  # of trained head offsets and LoFiT's scales
    rank: int = Field(default=8, ge=1, le=65536)  # lora, dora, masked-lora, eora
    lora_sites: tuple[SiteName, ...] = Field(default=SITES, min_length=1)  # linears that get low-rank factors
    lofit_l1: float = Field(default=5e-4, ge=0, le=1000)  # lofit: weight of the scales' L1 norm while heads are chosen
    calibration_tokens: int = Field(default=2048, ge=2)  # meanshift, eora: longest calibration sequence

    @field_validator("lora_sites")
    @classmethod
    def _each_site_once(cls, sites: tuple[SiteName, ...]) -> tuple[SiteName, ...]:
        return each_once(sites)
