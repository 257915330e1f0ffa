"""How far pruning moved a head's output, whatever that means for the answers: the ablations of the paper.

Letters: N samples, H heads, D head dim, K components.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mse_scores(dense_NHD: Tensor, pruned_NHD: Tensor) -> Tensor:
    """mean over samples and numbers of (z_dense - z_pruned)^2, [H] float64."""
    return (dense_NHD - pruned_NHD).double().square().mean(dim=(0, 2))


def kl_scores(dense_NHD: Tensor, pruned_NHD: Tensor) -> Tensor:
    """mean over samples of KL(softmax(z_dense) || softmax(z_pruned)), softmax over the D numbers; [H] float64.

    The paper does not say of which distributions its KL is; this reading needs no more than the activations.
    """
    dense, pruned = (torch.log_softmax(z.double(), dim=-1) for z in (dense_NHD, pruned_NHD))
    return (dense.exp() * (dense - pruned)).sum(dim=-1).mean(dim=0)


def energy_scores(loadings_HD: Tensor, components: int) -> Tensor:
    """|c_h|^2 = sum_{i<=K} alpha_i^2: the size of what a constant offset can bring back, [H] float64."""
    return loadings_HD[:, :components].double().square().sum(dim=-1)
