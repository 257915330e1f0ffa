"""The pruners: scores, updates, and the sparse checkpoint they leave.

Here: the `prune` section of params.yaml.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from restorelcc.base.errors import BadInput
from restorelcc.base.prunings import STRUCTURED_PRUNERS, Pruning
from restorelcc.base.section import Name, Section


class ExternalCheckpoint(Section):
    """A checkpoint that another tool pruned; `external-<name>` in grid.pruning enters it into the chain."""

    source: Name  # a folder, or a hub id
    revision: Name | None = None  # hub ids only: branch, tag or commit; None is the main branch


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
    damping: float = Field(default=0.01, gt=0, le=1000)  # added to the Hessian's diagonal, as a share of its mean
    block_columns: int = Field(default=128, ge=1)  # sparsegpt: columns per block, in which the mask is chosen at once
    slimgpt_first_layer: float = Field(default=1.0, ge=0, le=1)  # the first layer's ratio as a share of the mean ratio
    refined: RefinedConfig = RefinedConfig()
    allocation: Literal["uniform", "arithmetic", "owl"] = "uniform"  # how a fraction is spread over the blocks
    allocation_spread: float = Field(default=0.16, gt=0, lt=1)  # largest less smallest share of a block
    allocation_outliers: float = Field(default=5.0, gt=0)  # owl: scores above this multiple of their block's mean count
    error_tokens: int = Field(default=2048, ge=1)  # calibration tokens that errors are measured on, up to twice as many
    external: dict[str, dict[str, ExternalCheckpoint]] = {}  # by model alias, then by name


def check_allocation(pruning: Pruning, config: PruneConfig) -> None:
    """Raises BadInput where the pruning cannot take another share from every block, or the spread leaves (0, 1)."""
    if config.allocation == "uniform" or pruning.external is not None:
        return
    pattern = pruning.sparsity.is_pattern
    if pattern or pruning.pruner in STRUCTURED_PRUNERS:
        reason = "keeps the same share everywhere" if pattern else "has prune.slimgpt_first_layer instead"
        raise BadInput(
            f"prune.allocation is {config.allocation}, which {pruning.name} cannot follow because it {reason}: set "
            "prune.allocation to uniform, or use an unstructured pruner with a fraction"
        )
    fraction, half = pruning.sparsity.fraction, config.allocation_spread / 2
    if config.allocation == "arithmetic" and not 0 < fraction - half < fraction + half < 1:
        raise BadInput(
            f"prune.allocation_spread {config.allocation_spread:g} with {pruning.name} asks for blocks that lose "
            f"{fraction - half:.0%} to {fraction + half:.0%} of their weights: lower it"
        )
