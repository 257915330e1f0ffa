"""How many weights each linear loses where the blocks do not all lose the same share; the model's total stays exact.

Letters: L blocks, O output features (rows).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from restorelcc.base.errors import BadInput
from restorelcc.base.prunings import Sparsity
from restorelcc.sparsity.patterns import pruned_count


@dataclass(frozen=True)
class Place:
    """Where a linear stands, and its shape."""

    layer: int
    rows: int
    inputs: int

    @property
    def weights(self) -> int:
        return self.rows * self.inputs


def arithmetic_shifts(layers: int, spread: float) -> list[float]:
    """d_l = spread * (l / (L - 1) - 1/2): what block l loses above the mean share, in equal steps."""
    return [spread * (layer / (layers - 1) - 0.5) for layer in range(layers)] if layers > 1 else [0.0] * layers


def owl_shifts(outliers_L: Sequence[float], spread: float) -> list[float]:
    """d_l = -spread * (D_l - min D) / (max D - min D): the more outliers a block has, the less it loses.

    OWL (arXiv 2310.05175), section 3.2, where spread is 2 lambda; without its constant, which `allocated_zeros` adds.
    outliers_L: D_l, the share of outliers among a block's scores. All blocks are the same where D is.
    """
    least, most = min(outliers_L), max(outliers_L)
    return [-spread * (share - least) / (most - least) if most > least else 0.0 for share in outliers_L]


def outlier_share(scores: Callable[[], Iterable[Tensor]], above: float) -> float:
    """D = the share of a block's scores that exceed `above` times their mean. OWL (arXiv 2310.05175), equation 1.

    scores: makes the scores of the block's linears, one after another; it is called twice, so that they need not be in
    memory together.
    """
    total, count = 0.0, 0
    for score_OI in scores():
        total, count = total + float(score_OI.sum(dtype=torch.float64)), count + score_OI.numel()
    limit = above * total / count
    return sum(int((score_OI > limit).sum()) for score_OI in scores()) / count


def allocated_zeros(linears: Mapping[str, Place], sparsity: Sparsity, shifts_L: Sequence[float]) -> dict[str, int]:
    """Zeros of every linear: those of the same share everywhere, and shift * weights more; the sum stays the same.

    Shifts are taken relative to their mean over all weights. Fractions of a weight go by the largest remainder, of
    equal ones to the linear named first. Raises BadInput when a block would lose nothing or everything, or a linear
    less than nothing.
    """
    uniform = {name: pruned_count(place.inputs, sparsity) * place.rows for name, place in linears.items()}
    weights = sum(place.weights for place in linears.values())
    mean = math.fsum(shifts_L[place.layer] * place.weights for place in linears.values()) / weights
    shares = [sparsity.fraction + shift - mean for shift in shifts_L]
    wanted = {name: uniform[name] + (shifts_L[place.layer] - mean) * place.weights for name, place in linears.items()}
    # A row's count is rounded down, so that narrow linears have less to give back than the fraction says.
    least = min(*shares, *(wanted[name] / place.weights for name, place in linears.items()))
    if not 0 < min(shares) <= max(shares) < 1 or least < 0:
        raise BadInput(
            f"prune.allocation_spread asks for blocks that lose {least:.1%} to {max(shares):.1%} of their weights: "
            "lower it, so that every block loses something and keeps something"
        )
    zeros = {name: math.floor(value) for name, value in wanted.items()}
    missing = sum(uniform.values()) - sum(zeros.values())
    for name in sorted(wanted, key=lambda name: zeros[name] - wanted[name])[:missing]:
        zeros[name] += 1
    return zeros


def row_counts(zeros: int, rows: int) -> Tensor:
    """Zeros of each row, [O] int64, where a linear gets `zeros`: as even as can be, and the first rows get one more."""
    counts_O = torch.full((rows,), zeros // rows)
    counts_O[: zeros % rows] += 1
    return counts_O
