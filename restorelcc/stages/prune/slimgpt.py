"""SlimGPT: remove whole attention heads and FFN channels by optimal brain surgeon; the remaining columns compensate.

Letters: O output features, I input features, G parts, X columns of one part, S removed columns, K kept columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from restorelcc.base.errors import BadInput
from restorelcc.sparsity.patterns import without_chance_zeros
from restorelcc.stages.prune.sparsegpt import checked_cholesky

# Channels are removed in this many rounds; within one round their errors are taken as independent.
ROUNDS = 32


def layer_ratios(ratio: float, layers: int, first: float) -> list[float]:
    """r_l = ratio * (first + (1 - first) * t_l / mean t), t_l = log(1 + l) / log L: never decreasing, mean = ratio.

    SlimGPT, section 3.3 (incremental pruning ratio). `first` is the first layer's ratio as a share of the mean; 1 is
    the same everywhere. Raises BadInput when a layer would lose everything.
    """
    curve = [math.log1p(layer) for layer in range(layers)]
    mean = sum(curve) / layers or 1.0
    ratios = [ratio * (first + (1 - first) * value / mean) for value in curve] if layers > 1 else [ratio]
    if ratios[-1] >= 1:
        raise BadInput(
            f"prune.slimgpt_first_layer {first:g} with the sparsity {ratio:g} would remove more than the whole last "
            "layer: raise prune.slimgpt_first_layer or prune less"
        )
    return ratios


def parts_to_remove(
    ratio: float, total: int, groups: int, group_cost: int, channels: int, channel_cost: int
) -> tuple[int, int]:
    """(head groups, channels) to remove so that a layer of `total` weights loses `ratio` of them, to half a channel.

    Head groups are rounded half up, but never beyond the whole share and with at least one left; channels make up the
    difference.
    """
    wanted = ratio * total
    heads = min(groups - 1, math.floor(ratio * groups + 0.5), math.floor(wanted / group_cost))
    rest = math.floor((wanted - heads * group_cost) / channel_cost + 0.5)
    return heads, min(rest, channels - 1)


def part_errors(weight_OI: Tensor, inverse_II: Tensor, columns_GX: Tensor) -> Tensor:
    """e_g = tr(W_g ((H^-1)_gg)^-1 W_g^T), the output error of removing part g alone, [G]. SlimGPT, eq. 4; OBS."""
    if columns_GX.shape[1] == 1:  # of a single column the trace is a quotient
        return (weight_OI.square().sum(dim=0) / inverse_II.diagonal())[columns_GX[:, 0]]
    weight_GXO = weight_OI.T[columns_GX]
    inverse_GXX = inverse_II[columns_GX[:, :, None], columns_GX[:, None, :]]
    return (weight_GXO * torch.linalg.solve(inverse_GXX, weight_GXO)).sum(dim=(1, 2))


def choose_parts(weight_OI: Tensor, hessian_II: Tensor, columns_GX: Tensor, count: int) -> Tensor:
    """The `count` parts whose removal costs least, greedily, each round seeing the compensation of those before.

    Returns bool [G], True where removed; of equal errors the part further left goes first.
    """
    removed_G = torch.zeros(len(columns_GX), dtype=torch.bool, device=weight_OI.device)
    if not count:
        return removed_G
    weight_OI = weight_OI.to(torch.float32, copy=True)
    inverse_II = torch.cholesky_inverse(checked_cholesky(hessian_II))
    per_round = -(-count // ROUNDS) if columns_GX.shape[1] == 1 else 1
    while left := count - int(removed_G.sum()):
        alive = (~removed_G).nonzero().flatten()
        error = part_errors(weight_OI, inverse_II, columns_GX[alive])
        chosen = alive[torch.argsort(error, stable=True)[: min(per_round, left)]]
        removed_G[chosen] = True
        columns_S = columns_GX[chosen].flatten()
        # Both updates of the surgeon: the other weights take over, and the removed inputs leave the inverse.
        share_SI = torch.linalg.solve(inverse_II[columns_S][:, columns_S], inverse_II[columns_S])
        weight_OI.addmm_(weight_OI[:, columns_S], share_SI, alpha=-1)
        inverse_II.addmm_(inverse_II[:, columns_S], share_SI, alpha=-1)
    return removed_G


def compensated(weight_OI: Tensor, hessian_II: Tensor, removed_I: Tensor) -> Tensor:
    """W'_K = W_K + W_S H_SK (H_KK)^-1, W'_S = 0: the least-squares best W' without the removed columns. OBS.

    Returns float32 [O, I].
    """
    result_OI = weight_OI.to(torch.float32, copy=True)
    kept = (~removed_I).nonzero().flatten()
    gone = removed_I.nonzero().flatten()
    lost_OK = weight_OI.float()[:, gone] @ hessian_II[gone[:, None], kept]
    factor_KK = checked_cholesky(hessian_II[kept[:, None], kept])
    result_OI[:, kept] += torch.cholesky_solve(lost_OK.T, factor_KK).T
    return without_chance_zeros(result_OI, weight_OI).masked_fill_(removed_I, 0)
