"""Sparsity patterns of a weight: which entries a score keeps, and what a weight actually holds.

Letters: O output features (rows), I input features (columns).
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from restorelcc.base.errors import BadInput
from restorelcc.base.prunings import Sparsity

_SORTED_AT_ONCE = 2**20  # scores
_SELECTED_FROM = 64  # scores of a row; shorter ones are put in order sooner than selected from


def pruned_count(inputs: int, sparsity: Sparsity) -> int:
    """Zeros that every row of `inputs` weights gets: floor(fraction * I), or floor(I / M) * (M - N) for N:M."""
    if sparsity.group is None or sparsity.keep is None:
        # Of the decimal as it is written: in binary, 0.29 * 1600 is 463.99...
        return math.floor(inputs * Fraction(str(sparsity.fraction)))
    return inputs // sparsity.group * (sparsity.group - sparsity.keep)


def removal_mask(score_OI: Tensor, sparsity: Sparsity, counts_O: Tensor | None = None) -> Tensor:
    """True where the lowest scores are: per row for a fraction, per group of M neighbours in a row for N:M (N kept).

    counts_O: for a fraction, how many each row loses where that is not the same for all. Of equal scores the one
    further left is removed, so a mask is reproducible. Returns bool [O, I]. Raises BadInput
    when M does not divide I or a score is not finite.
    """
    if not torch.isfinite(score_OI).all():
        raise BadInput("a weight or its calibration activations hold NaN or infinity: the checkpoint cannot be pruned")
    inputs = score_OI.shape[1]
    check_divides(inputs, sparsity)
    if sparsity.group is None or sparsity.keep is None:
        return lowest(score_OI, pruned_count(inputs, sparsity) if counts_O is None else counts_O)
    return lowest(score_OI.reshape(-1, sparsity.group), sparsity.group - sparsity.keep).reshape(score_OI.shape)


def check_divides(inputs: int, sparsity: Sparsity) -> None:
    """Raises BadInput when the M of N:M does not divide a row of `inputs` weights."""
    if sparsity.group is not None and inputs % sparsity.group:
        raise BadInput(
            f"the pattern {sparsity} needs rows whose length is a multiple of {sparsity.group}, this one has {inputs}"
        )


def lowest(score_RC: Tensor, count: int | Tensor) -> Tensor:
    """True at the `count` lowest scores of each row; of equal scores the one further left. Returns bool [R, C].

    count: the same for all rows, or int64 [R].
    """
    mask_RC = torch.zeros_like(score_RC, dtype=torch.bool)
    if isinstance(count, Tensor):
        for one in count.unique().tolist():
            mask_RC[count == one] = lowest(score_RC[count == one], one)
        return mask_RC
    if not count:
        return mask_RC
    choose = _lowest_by_selection if score_RC.shape[1] >= _SELECTED_FROM and score_RC.is_cpu else _lowest_by_order
    # Some rows at a time: the order of a whole weight, as 64-bit numbers, is larger than the weight.
    rows = max(1, _SORTED_AT_ONCE // score_RC.shape[1])
    for part_RC, score in zip(mask_RC.split(rows), score_RC.split(rows), strict=True):
        choose(part_RC, score, count)
    return mask_RC


def _lowest_by_order(mask_RC: Tensor, score_RC: Tensor, count: int) -> None:
    mask_RC.scatter_(-1, torch.argsort(score_RC, dim=-1, stable=True)[:, :count], True)


def _lowest_by_selection(mask_RC: Tensor, score_RC: Tensor, count: int) -> None:
    """The same without putting whole rows in order: below the count-th lowest, and as many equal ones as are needed."""
    limit_R1 = score_RC.kthvalue(count, dim=-1, keepdim=True).values
    torch.lt(score_RC, limit_R1, out=mask_RC)
    equal_RC = score_RC == limit_R1
    wanted_R1 = count - mask_RC.sum(dim=-1, keepdim=True)
    if (equal_RC.sum(dim=-1, keepdim=True) > wanted_R1).any():
        equal_RC &= equal_RC.cumsum(dim=-1) <= wanted_R1
    mask_RC |= equal_RC


def without_chance_zeros(updated: Tensor, dense: Tensor) -> Tensor:
    """The updated weight, in place, with a number next to 0 where an update brought a weight to exactly 0 by chance.

    Zeros say what was removed, to whatever reads a mask off them; among millions of updated weights some cancel out.
    """
    return updated.masked_fill_((updated == 0) & (dense != 0), _next_to_zero(updated.dtype))


def rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in another dtype with the very same zeros: what would round to 0 becomes the number next to it."""
    result = weight.to(dtype)
    if dtype == weight.dtype:
        return result
    lost = (result == 0) & (weight != 0)
    return result.masked_fill_(lost, _next_to_zero(dtype)) if lost.any() else result


def retained(value: Tensor, before: Tensor, *, with_zeros: bool = False) -> Tensor:
    """The value in the dtype of `before`: its very bits wherever the two are one number in the value's dtype, which may
    have fewer digits, and elsewhere the value rounded, but never to 0.

    with_zeros: zeros of the value are zeros of the result, also where `before` is 0 in the value's dtype alone.
    """
    value = value.to(before.device)
    result = torch.where(value == before.to(value.dtype), before, rounded(value, before.dtype))
    return result.masked_fill_(value == 0, 0) if with_zeros else result


def _next_to_zero(dtype: torch.dtype) -> float:
    # Numbers below the smallest normal one may be flushed to 0, except for float16, which is widened where it is read.
    limits = torch.finfo(dtype)
    return limits.smallest_normal * (limits.eps if dtype == torch.float16 else 1)


def densest_group(weight_OI: Tensor, group: int) -> int | None:
    """The most non-zeros in any group of `group` neighbours in a row; None when the groups do not fill a row."""
    if weight_OI.shape[1] % group or not weight_OI.numel():
        return None
    return int((weight_OI != 0).reshape(-1, group).sum(dim=1).max())
