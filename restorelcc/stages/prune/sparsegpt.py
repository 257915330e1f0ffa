"""SparseGPT: remove weights by optimal brain surgeon, column by column; the columns to the right compensate.

Letters: O output features (rows), I input features (columns), B columns of one block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from restorelcc.base.errors import StageFailed
from restorelcc.base.prunings import Sparsity
from restorelcc.sparsity.patterns import check_divides, lowest, pruned_count, without_chance_zeros


def damped(gram_II: Tensor, damping: float) -> Tensor:
    """H = G + damping * mean(diag G) * 1, float32, with 1 on the diagonal of inputs that are always zero.

    Frantar and Alistarh 2023 (SparseGPT), section 3. gram_II: sum of x x^T over the calibration tokens.
    """
    hessian_II = gram_II.float().clone()
    diagonal_I = hessian_II.diagonal()
    silent_I = diagonal_I == 0
    diagonal_I += damping * diagonal_I.mean()
    diagonal_I[silent_I] = 1
    return hessian_II


def checked_cholesky(hessian_II: Tensor) -> Tensor:
    """L, lower triangular, with H = L L^T; of many H [..., I, I] at once. Raises StageFailed when one is not positive
    definite."""
    factor_II, failed = torch.linalg.cholesky_ex(hessian_II)
    if failed.any():
        raise StageFailed("the damped Hessian of a layer is not positive definite: raise prune.damping")
    return factor_II


def inverse_factor(hessian_II: Tensor) -> Tensor:
    """U, upper triangular, with H^-1 = U^T U. Raises StageFailed when H is not positive definite.

    With J the reversal of rows: J H J = L L^T gives H = R R^T, R = J L J upper triangular, so U = R^-1. One Cholesky
    and one triangular inverse, where inverting first would take two Cholesky and lose half of the digits.
    """
    lower_II = checked_cholesky(hessian_II.flip(0, 1))
    # The identity turns into the inverse in place, for which its columns must be contiguous.
    inverse_II = torch.eye(len(lower_II), dtype=lower_II.dtype, device=lower_II.device).T
    torch.linalg.solve_triangular(lower_II, inverse_II, upper=False, out=inverse_II)
    del lower_II
    return inverse_II.flip(0, 1)


def sparsegpt(
    weight_OI: Tensor,
    gram_II: Tensor,
    sparsity: Sparsity,
    *,
    damping: float = 0.01,
    block_columns: int = 128,
    counts_O: Tensor | None = None,
) -> Tensor:
    """W' with the zeros asked for: error_j = w_j / U_jj, W_:,k -= error_j U_jk for k > j. SparseGPT, algorithm 1.

    The mask is chosen by (w / U_jj)^2 when its block (for N:M: its group) is reached, so it sees every update so far.
    A fraction takes its share of each row from every block: floor(fraction * end) - floor(fraction * start) weights,
    which adds up to the exact count of the row; counts_O are the rows' counts where they differ. Returns float32
    [O, I]. Raises BadInput when M does not divide I.
    """
    inputs = weight_OI.shape[1]
    check_divides(inputs, sparsity)
    factor_II = inverse_factor(damped(gram_II, damping))
    if sparsity.group is not None:  # a group never straddles two blocks
        block_columns = max(1, block_columns // sparsity.group) * sparsity.group
    # Transposed, so that one column of the weight is contiguous; a copy, even of a single row.
    weight_IO = weight_OI.float().T.clone(memory_format=torch.contiguous_format)
    # An input that is always zero says nothing about its weights: they go first, and those that stay keep their value.
    silent_I = gram_II.diagonal() == 0
    kept_IO = weight_IO[silent_I].clone()
    weight_IO[silent_I] = 0
    removed_IO = torch.zeros_like(weight_IO, dtype=torch.bool)
    for start in range(0, inputs, block_columns):
        block = slice(start, min(start + block_columns, inputs))
        quota = _quota(block, inputs, sparsity, counts_O)
        error_BO, removed_IO[block] = _prune_block(weight_IO[block], factor_II[block, block], sparsity, quota)
        weight_IO[block.stop :].addmm_(factor_II[block, block.stop :].T, error_BO, alpha=-1)
    weight_IO[silent_I] = kept_IO
    return without_chance_zeros(weight_IO, weight_OI.T).masked_fill_(removed_IO, 0).T.contiguous()


def _quota(block: slice, inputs: int, sparsity: Sparsity, counts_O: Tensor | None) -> int | Tensor:
    """Zeros of every row in the block, or of each, [O]."""
    if counts_O is None:
        return pruned_count(block.stop, sparsity) - pruned_count(block.start, sparsity)
    return counts_O * block.stop // inputs - counts_O * block.start // inputs


def _prune_block(
    weight_BO: Tensor, factor_BB: Tensor, sparsity: Sparsity, quota: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Prune one block in place; returns the errors to hand on to the columns after it, and the mask [B, O]."""
    error_BO = torch.zeros_like(weight_BO)
    diagonal_B = factor_BB.diagonal()
    step, count = (len(weight_BO), quota) if sparsity.group is None else (sparsity.group, 0)
    if sparsity.group is not None and sparsity.keep is not None:
        count = sparsity.group - sparsity.keep
    removed_BO = torch.zeros_like(weight_BO, dtype=torch.bool)
    for column in range(len(weight_BO)):
        if column % step == 0:
            group = slice(column, column + step)
            score_GO = (weight_BO[group] / diagonal_B[group, None]).square()
            removed_BO[group] = lowest(score_GO.T, count).T
        error_O = weight_BO[column] * removed_BO[column] / diagonal_B[column]
        weight_BO[column:].addr_(factor_BB[column, column:], error_O, alpha=-1)
        error_BO[column] = error_O
    return error_BO, removed_BO
