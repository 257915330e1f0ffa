"""Lost components of all heads of a layer at once.

Letters: N samples, H heads, D head dim, K kept components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Components:
    """Of one layer, float32: directions [H, D, D] (rows v_i, most lost first), singular values and loadings [H, D]."""

    directions_HDD: Tensor
    singular_values_HD: Tensor
    loadings_HD: Tensor


def decompose(lost_NHD: Tensor, solver: Literal["auto", "svd", "gram"] = "auto") -> Components:
    """dZ_h = U S V^T and alpha_i = mean_n(sigma_i u_ni) for every head h. RestoreLCC eq. 3 and 4.

    lost_NHD [N, H, D]: z_dense - z_pruned. Computed in float64. `svd` factors dZ itself; `gram` takes eigenvectors of
    dZ^T dZ, whose rounding error is 1e-16 of its largest eigenvalue: singular values down to 1e-7 of the largest keep
    their digits, which is where float32 activations end anyway. With N < D the last D - N directions complete an
    orthonormal basis and have singular value and loading 0. The largest entry of every direction is positive.
    """
    lost_HND = lost_NHD.transpose(0, 1).double()
    samples, head_dim = lost_HND.shape[1:]
    if solver == "gram" or (solver == "auto" and samples >= 4 * head_dim):
        energy_HD, vectors_HDD = torch.linalg.eigh(lost_HND.mT @ lost_HND)
        directions_HDD = vectors_HDD.flip(-1).mT
        singular_HD = energy_HD.flip(-1).clamp(min=0).sqrt()
    else:
        _, values, directions_HDD = torch.linalg.svd(lost_HND, full_matrices=samples < head_dim)
        singular_HD = torch.nn.functional.pad(values, (0, head_dim - values.shape[-1]))
    largest = directions_HDD.abs().argmax(dim=-1, keepdim=True)
    directions_HDD = directions_HDD * directions_HDD.gather(-1, largest).sign()
    # sigma_i u_ni = dz_n . v_i, so its mean over n is the mean row of dZ along v_i.
    loadings_HD = torch.einsum("hd,hid->hi", lost_HND.mean(dim=1), directions_HDD)
    if samples < head_dim:
        loadings_HD[:, samples:] = 0
    return Components(directions_HDD.float(), singular_HD.float(), loadings_HD.float())
