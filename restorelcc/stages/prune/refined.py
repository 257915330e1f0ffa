"""Refined pruning: a better mask, the best weights for it, and the bias that takes up the constant part of the loss.

A linear with weight W and inputs x keeps W'. With E = W - W', mu = E[x], G = E[x x^T] and G_c = G - mu mu^T, the mean
squared error of its output is, row by row, e G e^T; with the bias b = E mu beside W' it is e G_c e^T. Where that bias
is going to be there, mask and weights minimise the second form. Sources: SparseSwaps (arXiv 2512.10922) for the swaps,
ADMM pruning (2401.02938) for least squares under a mask, FLAP (2312.11983) and STADE (2503.22451) for the bias.

Letters: O output features (rows), I input features (columns), S kept columns of a row, R rows worked on at once, M and
N of N:M, C candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from restorelcc.base.prunings import Sparsity
from restorelcc.stages.prune.sparsegpt import checked_cholesky

_EXACT_UP_TO = 128  # inputs; rows of that many are solved exactly, one factorisation a row
_ITERATIONS = 100  # of conjugate gradients at most
_TOLERANCE = 1e-4  # of the residual, by the first one's norm
_CANDIDATES = 16  # weights of a row on either side whose exchanges are looked at, where a row has more
_AT_ONCE = 8  # swaps of a row that are proposed together
_NUMBERS_AT_ONCE = 2**22  # of one scratch tensor


def swapped(weight_OI: Tensor, removed_OI: Tensor, gram_II: Tensor, sparsity: Sparsity, limit: int) -> Tensor:
    """The mask after 1-swaps: while it lowers a row's loss, its best exchanges of a kept weight with a removed one.

    Removing kept p and bringing removed q back changes the loss e G e^T by a_p + b_q - 2 w_p w_q G_pq, where
    a_p = 2 w_p c_p + w_p^2 G_pp, b_q = -2 w_q c_q + w_q^2 G_qq and c = G e (SparseSwaps, arXiv 2512.10922). At most
    `limit` swaps a row. For a fraction the exchanges are the best among the 16 most promising weights of either side,
    which are all of them in rows of up to 16; for N:M they are the best of all that stay inside a group. Up to 8 are
    made before all are compared again, each only if it lowers the loss after those before it. The loss of no row rises,
    and every row and group keeps its count. weight_OI: float32; removed_OI: bool. Returns bool [O, I].
    """
    removed_OI = removed_OI.clone()
    rows = max(1, _NUMBERS_AT_ONCE // (max(2 * _AT_ONCE, sparsity.group or 0) * weight_OI.shape[1] + _CANDIDATES**2))
    for weight_RI, removed_RI in zip(weight_OI.split(rows), removed_OI.split(rows), strict=True):
        _swap_rows(weight_RI, removed_RI, gram_II, sparsity, limit)
    return removed_OI


def _swap_rows(weight_RI: Tensor, removed_RI: Tensor, gram_II: Tensor, sparsity: Sparsity, limit: int) -> None:
    """Swap in place; rows that nothing more lowers are left alone."""
    diagonal_I = gram_II.diagonal()
    slope_RI = (weight_RI * removed_RI) @ gram_II  # c = G e
    loss_R = (slope_RI * weight_RI * removed_RI).sum(dim=1)
    live_R = torch.arange(len(weight_RI), device=weight_RI.device)
    left_R = torch.full_like(live_R, limit)
    proposed = _best_by_group if sparsity.is_pattern else _best_of_candidates
    while len(live_R):
        w_RI, gone_RI = weight_RI[live_R], removed_RI[live_R]
        linear_RI, square_RI = 2 * w_RI * slope_RI[live_R], w_RI.square() * diagonal_I
        remove_RI = (square_RI + linear_RI).masked_fill_(gone_RI, torch.inf)  # a_p
        return_RI = (square_RI - linear_RI).masked_fill_(~gone_RI, torch.inf)  # b_q
        change_RK, kept_RK, back_RK = proposed(remove_RI, return_RI, w_RI, gram_II, sparsity)
        columns_RE = torch.cat([kept_RK, back_RK], dim=1)  # what E gets: w_p at p, and -w_q at q
        values_RE = w_RI.gather(1, columns_RE)
        values_RE[:, kept_RK.shape[1] :].neg_()
        # Below the rounding of the loss itself a gain means nothing, and rows would exchange the same two for ever.
        least_R = -1e-6 * loss_R[live_R].clamp_min(torch.finfo(loss_R.dtype).tiny)
        taken_RK, gain_R = _taken(change_RK, back_RK, columns_RE, values_RE, gram_II, least_R, left_R[live_R])
        better_R = taken_RK.any(dim=1)
        live_R, taken_RK, columns_RE, gain_R = (
            live_R[better_R],
            taken_RK[better_R],
            columns_RE[better_R],
            gain_R[better_R],
        )
        values_RE = values_RE[better_R] * taken_RK.repeat(1, 2)
        rows_RK = live_R[:, None].expand_as(taken_RK)[taken_RK]
        kept_RK, back_RK = columns_RE.chunk(2, dim=1)
        removed_RI[rows_RK, kept_RK[taken_RK]], removed_RI[rows_RK, back_RK[taken_RK]] = True, False
        slope_RI[live_R] += torch.bmm(values_RE[:, None], gram_II[columns_RE])[:, 0]
        loss_R[live_R] += gain_R
        left_R[live_R] -= taken_RK.sum(dim=1)
        live_R = live_R[left_R[live_R] > 0]


def _taken(
    change_RK: Tensor,
    back_RK: Tensor,
    columns_RE: Tensor,
    values_RE: Tensor,
    gram_II: Tensor,
    least_R: Tensor,
    left_R: Tensor,
) -> tuple[Tensor, Tensor]:
    """Which of K proposed swaps are made, best first, [R, K], and their change of the loss together, [R].

    After the swaps j a swap k changes the loss by its own change and 2 d_j G d_k for each j, where d is what a swap
    adds to E; it is made where that still lowers the loss, and where no j brought the same weight back.
    """
    count = change_RK.shape[1]
    mixed_REE = gram_II[columns_RE[:, :, None], columns_RE[:, None, :]]
    mixed_REE *= values_RE[:, :, None] * values_RE[:, None, :]
    mixed_RKK = 2 * mixed_REE.unflatten(1, (2, count)).unflatten(3, (2, count)).sum(dim=(1, 3))
    same_RKK = back_RK[:, :, None] == back_RK[:, None, :]
    taken_RK = torch.zeros_like(change_RK, dtype=torch.bool)
    gain_R = torch.zeros_like(least_R)
    for k in range(count):
        change_R = change_RK[:, k] + (mixed_RKK[:, k, :k] * taken_RK[:, :k]).sum(dim=1)
        free_R = ~(same_RKK[:, k, :k] & taken_RK[:, :k]).any(dim=1)
        taken_RK[:, k] = (change_R < least_R) & free_R & (taken_RK.sum(dim=1) < left_R)
        gain_R += torch.where(taken_RK[:, k], change_R, 0.0)
    return taken_RK, gain_R


def _best_of_candidates(
    remove_RI: Tensor, return_RI: Tensor, weight_RI: Tensor, gram_II: Tensor, sparsity: Sparsity
) -> tuple[Tensor, Tensor, Tensor]:
    """(change of the loss, kept column p, removed column q), best first, [R, K] each: for K weights p the best q."""
    count = min(_CANDIDATES, weight_RI.shape[1])
    gain_RC, kept_RC = remove_RI.topk(count, dim=1, largest=False)
    cost_RC, back_RC = return_RI.topk(count, dim=1, largest=False)
    mixed_RCC = gram_II[kept_RC[:, :, None], back_RC[:, None, :]]
    mixed_RCC *= -2 * weight_RI.gather(1, kept_RC)[:, :, None] * weight_RI.gather(1, back_RC)[:, None, :]
    change_RC, place_RC = mixed_RCC.add_(gain_RC[:, :, None]).add_(cost_RC[:, None, :]).min(dim=2)
    change_RK, first_RK = change_RC.topk(min(_AT_ONCE, count), dim=1, largest=False)
    return change_RK, kept_RC.gather(1, first_RK), back_RC.gather(1, place_RC.gather(1, first_RK))


def _best_by_group(
    remove_RI: Tensor, return_RI: Tensor, weight_RI: Tensor, gram_II: Tensor, sparsity: Sparsity
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with K groups of M neighbours, for each of them its best exchange; all of them are looked at."""
    group = sparsity.group
    assert group is not None
    start_G = torch.arange(0, weight_RI.shape[1], group, device=weight_RI.device)
    columns_GM = start_G[:, None] + torch.arange(group, device=weight_RI.device)
    mixed_GMM = -2 * gram_II[columns_GM[:, :, None], columns_GM[:, None, :]]
    w_RGM = weight_RI.unflatten(1, (-1, group))
    change_RGMM = w_RGM[..., :, None] * w_RGM[..., None, :] * mixed_GMM
    change_RGMM += remove_RI.unflatten(1, (-1, group))[..., :, None]
    change_RGMM += return_RI.unflatten(1, (-1, group))[..., None, :]
    change_RG, place_RG = change_RGMM.flatten(2).min(dim=2)
    change_RK, first_RK = change_RG.topk(min(_AT_ONCE, change_RG.shape[1]), dim=1, largest=False)
    place_RK, start_RK = place_RG.gather(1, first_RK), start_G[first_RK]
    return change_RK, start_RK + place_RK // group, start_RK + place_RK % group


def least_squares(weight_OI: Tensor, removed_OI: Tensor, hessian_II: Tensor) -> Tensor:
    """argmin over W' with W' = 0 where removed of (W - W') H (W - W')^T, row by row; float32 [O, I].

    The normal equations of a row's kept columns S are H_SS w'_S = H_S: w, so that w'_S = w_S + H_SS^-1 H_SR w_R with R
    the removed ones. Rows of up to 128 inputs are solved exactly, in float64; longer ones by conjugate gradients, all
    rows at once and preconditioned by the diagonal, which start at w_S and lower the loss with every step. H is the
    damped second moment (`sparsegpt.damped`): its damping pulls W' towards W. Raises StageFailed when a row that is
    solved exactly finds H not positive definite.
    """
    solve = _solved_exactly if weight_OI.shape[1] <= _EXACT_UP_TO else _solved_by_conjugate_gradients
    return solve(weight_OI.float(), removed_OI, hessian_II)


def _solved_exactly(weight_OI: Tensor, removed_OI: Tensor, hessian_II: Tensor) -> Tensor:
    wide_II, identity_II = hessian_II.double(), torch.eye(len(hessian_II), dtype=torch.float64, device=weight_OI.device)
    rows = max(1, _NUMBERS_AT_ONCE // wide_II.numel())
    solved = []
    for weight_RI, removed_RI in zip(weight_OI.double().split(rows), removed_OI.split(rows), strict=True):
        kept_RI = (~removed_RI).double()
        # Removed rows and columns of H become those of the identity, so that every row's system has the same size.
        system_RII = torch.where(kept_RI[:, :, None] * kept_RI[:, None, :] > 0, wide_II, identity_II)
        factor_RII = checked_cholesky(system_RII)
        lost_RI = (weight_RI * removed_RI) @ wide_II * kept_RI
        change_RI = torch.cholesky_solve(lost_RI[:, :, None], factor_RII)[:, :, 0]
        solved.append((weight_RI + change_RI) * kept_RI)
    return torch.cat(solved).float()


def _solved_by_conjugate_gradients(weight_OI: Tensor, removed_OI: Tensor, hessian_II: Tensor) -> Tensor:
    inverse_I = 1 / hessian_II.diagonal().clamp_min(torch.finfo(torch.float32).tiny)
    change_OI = torch.zeros_like(weight_OI)
    residual_OI = ((weight_OI * removed_OI) @ hessian_II).masked_fill_(removed_OI, 0)
    direction_OI = residual_OI * inverse_I
    energy_O1 = (residual_OI * direction_OI).sum(dim=1, keepdim=True)
    enough_O1 = energy_O1 * _TOLERANCE**2
    own_OI = torch.empty_like(weight_OI)  # in place: each of these is as large as the weight
    for _ in range(_ITERATIONS):
        curved_OI = torch.mm(direction_OI, hessian_II, out=own_OI).masked_fill_(removed_OI, 0)
        along_O1 = (direction_OI * curved_OI).sum(dim=1, keepdim=True)
        step_O1 = torch.where(along_O1 > 0, energy_O1 / along_O1, 0.0)
        change_OI.addcmul_(step_O1, direction_OI)
        residual_OI.addcmul_(step_O1, curved_OI, value=-1)
        scaled_OI = torch.mul(residual_OI, inverse_I, out=own_OI)
        next_O1 = (residual_OI * scaled_OI).sum(dim=1, keepdim=True)
        if (next_O1 <= enough_O1).all():
            break
        direction_OI.mul_(torch.where(energy_O1 > 0, next_O1 / energy_O1, 0.0)).add_(scaled_OI)
        energy_O1 = next_O1
    return change_OI.add_(weight_OI).masked_fill_(removed_OI, 0)


def constant_part(dense_OI: Tensor, pruned_OI: Tensor, mean_I: Tensor) -> Tensor:
    """b = (W - W') mu, [O] float64: the constant part of what the pruned linear lacks."""
    return (dense_OI.double() - pruned_OI.double()) @ mean_I.double()
