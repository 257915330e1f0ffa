"""Compensations that are computed rather than trained: where training can start.

Letters: P chosen heads, D head dim, X = H*D, M model width, O output features, I input features.
"""

from __future__ import annotations

import torch
from torch import Tensor


def removed_bias(dense_mean_O: Tensor, weight_OI: Tensor, mean_I: Tensor) -> Tensor:
    """b = (W_dense - W_pruned) mean(x): what the removed weights gave on average. FLAP, arXiv 2312.11983.

    dense_mean_O = W_dense mean(x), x being what the dense model's linear receives. Returns [O] float64.
    """
    return dense_mean_O - weight_OI.double() @ mean_I.double()


def ridge_offsets(weight_MPD: Tensor, lost_M: Tensor, damping: float) -> Tensor:
    """argmin_c |lost - sum_p W_p c_p|^2 + lambda |c|^2, the ridge of the dense out-projection's output on the pruned
    one's when only constants c_p of the chosen heads may change it. Returns [P, D] float64.

    Summed over tokens the constant's fit depends on the mean alone: lost_M = mean(y_dense - y_pruned). weight_MPD: the
    chosen heads' columns of W_O; lambda = damping times the mean squared norm of its columns.
    """
    flat_MX = weight_MPD.flatten(1).double()
    gram_XX = flat_MX.T @ flat_MX
    gram_XX.diagonal().add_(damping * gram_XX.diagonal().mean() + torch.finfo(torch.float64).tiny)
    return torch.linalg.solve(gram_XX, flat_MX.T @ lost_M.double()).unflatten(0, weight_MPD.shape[1:])
