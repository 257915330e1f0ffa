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

from restorelcc.base.errors import StageFailed
from restorelcc.base.prunings import Sparsity

_EXACT_UP_TO = 128  # inputs; rows of that many are solved exactly, one factorisation a row
_ITERATIONS = 100  # of conjugate gradients at most
_TOLERANCE = 1e-5  # of the residual, by the first one's norm
_CANDIDATES = 32  # weights of a row on either side whose exchanges are looked at, where a row has more
_NUMBERS_AT_ONCE = 2**22  # of one scratch tensor


def row_losses(error_OI: Tensor, gram_II: Tensor) -> Tensor:
    """e G e^T for every row e of E, [O]: its summed squared output error, by G = sum of x x^T."""
    return ((error_OI @ gram_II) * error_OI).sum(dim=1)


def swapped(weight_OI: Tensor, removed_OI: Tensor, gram_II: Tensor, sparsity: Sparsity, limit: int) -> Tensor:
    """The mask after 1-swaps: while it lowers a row's loss, its best exchange of a kept weight with a removed one.

    Removing kept p and bringing removed q back changes the loss e G e^T by a_p + b_q - 2 w_p w_q G_pq, where
    a_p = 2 w_p c_p + w_p^2 G_pp, b_q = -2 w_q c_q + w_q^2 G_qq and c = G e (SparseSwaps, arXiv 2512.10922). At most
    `limit` swaps a row. For a fraction the exchange is the best among the 32 most promising weights of either side,
    which are all of them in rows of up to 32; for N:M it is the best of all that stay inside a group. The loss of no
    row rises, and every row and group keeps its count. weight_OI: float32; removed_OI: bool. Returns bool [O, I].
    """
    removed_OI = removed_OI.clone()
    rows = max(1, _NUMBERS_AT_ONCE // (weight_OI.shape[1] + _CANDIDATES**2))
    for weight_RI, removed_RI in zip(weight_OI.split(rows), removed_OI.split(rows), strict=True):
        _swap_rows(weight_RI, removed_RI, gram_II, sparsity, limit)
    return removed_OI


def _swap_rows(weight_RI: Tensor, removed_RI: Tensor, gram_II: Tensor, sparsity: Sparsity, limit: int) -> None:
    """Swap in place; rows that nothing more lowers are left alone."""
    diagonal_I = gram_II.diagonal()
    slope_RI = (weight_RI * removed_RI) @ gram_II  # c = G e
    loss_R = (slope_RI * weight_RI * removed_RI).sum(dim=1)
    live_R = torch.arange(len(weight_RI), device=weight_RI.device)
    best = _best_in_group if sparsity.is_pattern else _best_of_candidates
    for _ in range(limit):
        w_RI, gone_RI = weight_RI[live_R], removed_RI[live_R]
        linear_RI, square_RI = 2 * w_RI * slope_RI[live_R], w_RI.square() * diagonal_I
        remove_RI = (square_RI + linear_RI).masked_fill_(gone_RI, torch.inf)  # a_p
        return_RI = (square_RI - linear_RI).masked_fill_(~gone_RI, torch.inf)  # b_q
        change_R, kept_R, back_R = best(remove_RI, return_RI, w_RI, gram_II, sparsity)
        # Below the rounding of the loss itself a gain means nothing, and rows would exchange the same two for ever.
        better_R = change_R < -1e-6 * loss_R[live_R].clamp_min(torch.finfo(loss_R.dtype).tiny)
        if not better_R.any():
            return
        live_R, kept_R, back_R, change_R = live_R[better_R], kept_R[better_R], back_R[better_R], change_R[better_R]
        removed_RI[live_R, kept_R], removed_RI[live_R, back_R] = True, False
        out_R1, in_R1 = weight_RI[live_R, kept_R][:, None], weight_RI[live_R, back_R][:, None]
        slope_RI[live_R] += out_R1 * gram_II[kept_R] - in_R1 * gram_II[back_R]
        loss_R[live_R] += change_R


def _best_of_candidates(
    remove_RI: Tensor, return_RI: Tensor, weight_RI: Tensor, gram_II: Tensor, sparsity: Sparsity
) -> tuple[Tensor, Tensor, Tensor]:
    """(change of the loss, kept column p, removed column q) of each row's best exchange, [R] each."""
    count = min(_CANDIDATES, weight_RI.shape[1])
    gain_RC, kept_RC = remove_RI.topk(count, dim=1, largest=False)
    cost_RC, back_RC = return_RI.topk(count, dim=1, largest=False)
    mixed_RCC = gram_II[kept_RC[:, :, None], back_RC[:, None, :]]
    mixed_RCC *= -2 * weight_RI.gather(1, kept_RC)[:, :, None] * weight_RI.gather(1, back_RC)[:, None, :]
    change_RCC = mixed_RCC.add_(gain_RC[:, :, None]).add_(cost_RC[:, None, :])
    change_R, place_R = change_RCC.flatten(1).min(dim=1)
    kept_R = kept_RC.gather(1, (place_R // count)[:, None])[:, 0]
    return change_R, kept_R, back_RC.gather(1, (place_R % count)[:, None])[:, 0]


def _best_in_group(
    remove_RI: Tensor, return_RI: Tensor, weight_RI: Tensor, gram_II: Tensor, sparsity: Sparsity
) -> tuple[Tensor, Tensor, Tensor]:
    """The same among exchanges inside one group of M neighbours; every one of them is looked at."""
    group = sparsity.group
    assert group is not None
    inputs = weight_RI.shape[1]
    first_G = torch.arange(0, inputs, group, device=weight_RI.device)
    best_R = torch.full_like(weight_RI[:, 0], torch.inf)
    kept_R, back_R = torch.zeros_like(best_R, dtype=torch.long), torch.zeros_like(best_R, dtype=torch.long)
    for one in range(group):
        for other in range(group):
            if one == other:
                continue
            p_G, q_G = first_G + one, first_G + other
            change_RG = remove_RI[:, p_G] + return_RI[:, q_G]
            change_RG -= 2 * weight_RI[:, p_G] * weight_RI[:, q_G] * gram_II[p_G, q_G]
            change_R, place_R = change_RG.min(dim=1)
            better_R = change_R < best_R
            best_R = torch.where(better_R, change_R, best_R)
            kept_R = torch.where(better_R, p_G[place_R], kept_R)
            back_R = torch.where(better_R, q_G[place_R], back_R)
    return best_R, kept_R, back_R


def least_squares(weight_OI: Tensor, removed_OI: Tensor, hessian_II: Tensor) -> Tensor:
    """argmin over W' with W' = 0 where removed of (W - W') H (W - W')^T, row by row; float32 [O, I].

    The normal equations of a row's kept columns S are H_SS w'_S = H_S: w, so that w'_S = w_S + H_SS^-1 H_SR w_R with R
    the removed ones. Rows of up to 128 inputs are solved exactly, in float64; longer ones by conjugate gradients, all
    rows at once and preconditioned by the diagonal, which start at w_S and lower the loss with every step. H is the
    damped second moment (`sparsegpt.damped`): its damping pulls W' towards W. Raises StageFailed when H is not
    positive definite.
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
        factor_RII, failed_R = torch.linalg.cholesky_ex(system_RII)
        if failed_R.any():
            raise StageFailed("the damped Hessian of a layer is not positive definite: raise prune.damping")
        lost_RI = (weight_RI * removed_RI) @ wide_II * kept_RI
        change_RI = torch.cholesky_solve(lost_RI[:, :, None], factor_RII)[:, :, 0]
        solved.append((weight_RI + change_RI) * kept_RI)
    return torch.cat(solved).float()


def _solved_by_conjugate_gradients(weight_OI: Tensor, removed_OI: Tensor, hessian_II: Tensor) -> Tensor:
    kept_OI = (~removed_OI).float()
    inverse_I = 1 / hessian_II.diagonal().clamp_min(torch.finfo(torch.float32).tiny)
    change_OI = torch.zeros_like(weight_OI)
    residual_OI = (weight_OI * removed_OI) @ hessian_II * kept_OI
    scaled_OI = residual_OI * inverse_I
    direction_OI = scaled_OI.clone()
    energy_O1 = (residual_OI * scaled_OI).sum(dim=1, keepdim=True)
    enough_O1 = energy_O1 * _TOLERANCE**2
    for _ in range(_ITERATIONS):
        curved_OI = direction_OI @ hessian_II * kept_OI
        along_O1 = (direction_OI * curved_OI).sum(dim=1, keepdim=True)
        step_O1 = torch.where(along_O1 > 0, energy_O1 / along_O1, 0.0)
        change_OI.addcmul_(step_O1, direction_OI)
        residual_OI.addcmul_(step_O1, curved_OI, value=-1)
        scaled_OI = residual_OI * inverse_I
        next_O1 = (residual_OI * scaled_OI).sum(dim=1, keepdim=True)
        if (next_O1 <= enough_O1).all():
            break
        direction_OI = scaled_OI + torch.where(energy_O1 > 0, next_O1 / energy_O1, 0.0) * direction_OI
        energy_O1 = next_O1
    return (weight_OI + change_OI) * kept_OI


def constant_part(dense_OI: Tensor, pruned_OI: Tensor, mean_I: Tensor) -> Tensor:
    """b = (W - W') mu, [O] float64: the constant part of what the pruned linear lacks."""
    return (dense_OI.double() - pruned_OI.double()) @ mean_I.double()
