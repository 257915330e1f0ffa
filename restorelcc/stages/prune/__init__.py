"""The pruners: scores, updates, and the sparse checkpoint they leave.

Here: the `prune` section of params.yaml.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from restorelcc.base.section import Section


class ExternalCheckpoint(Section):
    """A checkpoint that another tool pruned; `external-<name>` in grid.pruning enters it into the chain."""

    source: str = Field(min_length=1)  # a folder, or a hub id
    revision: str | None = None  # hub ids only: branch, tag or commit; None is the main branch


class RefinedConfig(Section):
    """What `refined` does, each part to be left out for comparison (docs/pruning.md)."""

    start: Literal["wanda", "sparsegpt"] = "wanda"  # the criterion that chooses the first mask
    centred: bool = True  # statistics about the mean, where a bias takes up the constant part
    swaps: int = Field(default=100, ge=0)  # exchanges of a kept weight with a removed one, at most, per row
    update: bool = True  # surviving weights by least squares
    bias: bool = True  # on every linear whose class can carry one; without it nothing is centred


class PruneConfig(Section):
    """Calibration and numerics of the pruners; which pruner and how much comes from grid.pruning."""

    samples: int = Field(default=128, ge=1)  # calibration sequences
    sequence_length: int = Field(default=2048, ge=2)  # tokens at most per sequence; never max_position_embeddings
    token_budget: int = Field(default=4096, ge=1)  # tokens of one calibration batch
    seed: int = Field(default=42, ge=0)
    damping: float = Field(default=0.01, gt=0)  # added to the Hessian's diagonal, as a share of its mean
    block_columns: int = Field(default=128, ge=1)  # sparsegpt: columns per block, in which the mask is chosen at once
    slimgpt_first_layer: float = Field(default=1.0, ge=0, le=1)  # the first layer's ratio as a share of the mean ratio
    refined: RefinedConfig = RefinedConfig()
    error_tokens: int = Field(default=2048, ge=1)  # calibration tokens that reconstruction errors are measured on
    external: dict[str, dict[str, ExternalCheckpoint]] = {}  # by model alias, then by name
