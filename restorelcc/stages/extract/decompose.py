"""Lost components of all heads of a layer at once.

Letters: N samples, H heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from restorelcc.models.runtime import map_on_all_cores

Solver = Literal["auto", "svd", "gram"]


@dataclass(frozen=True)
class Components:
    """Of one layer, float32: directions [H, D, D] (rows v_i, most lost first), singular values and loadings [H, D]."""

    directions_HDD: Tensor
    singular_values_HD: Tensor
    loadings_HD: Tensor


def decompose(lost_NHD: Tensor, solver: Solver = "auto") -> Components:
    """dZ_h = U S V^T and alpha_i = mean_n(sigma_i u_ni) for every head h. RestoreLCC eq. 3 and 4.

    lost_NHD [N, H, D]: z_dense - z_pruned. Computed in float64. `svd` factors dZ itself; `gram` takes the eigenvectors
    of dZ^T dZ, a D x D matrix, which is the cheaper the more samples there are. `auto` is gram when N >= D.

    Why gram is accurate enough: with e = 1.1e-16, rounding moves an eigenvalue of dZ^T dZ by a few e sigma_1^2, and so
    a singular value sigma by a few e sigma_1^2 / sigma, at most sqrt(e) sigma_1 = 1e-8 sigma_1. The activations are
    float32, whose own rounding moves every sigma by up to 6e-8 sigma_1: an SVD of the same numbers in float32 is less
    accurate at every sigma. Directions turn by the same error divided by the gap to the next singular value; where
    there is no gap, no solver has an answer, and what is made of them (their span) is the same.

    With N < D, D - N directions are lost by no sample: they complete the orthonormal basis, with singular value and
    loading 0. The largest entry of every direction is positive (of equals the first), so that equal input gives equal
    bytes.
    """
    samples, heads, head_dim = lost_NHD.shape
    chosen = ("gram" if samples >= head_dim else "svd") if solver == "auto" else solver
    size = max(1, -(-heads // (4 * torch.get_num_threads())))
    parts = map_on_all_cores(lambda part: _decompose(part, chosen), lost_NHD.split(size, dim=1))
    return Components(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _decompose(lost_NHD: Tensor, solver: str) -> tuple[Tensor, Tensor, Tensor]:
    lost_HND = lost_NHD.transpose(0, 1).double()
    samples, head_dim = lost_HND.shape[1:]
    if solver == "gram":
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
        singular_HD[:, samples:] = 0
        loadings_HD[:, samples:] = 0
    return directions_HDD.float(), singular_HD.float(), loadings_HD.float()
