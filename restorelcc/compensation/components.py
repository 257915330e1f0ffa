"""What the lost components of a head add up to.

Letters: H heads (any leading axes), D head dim, K kept components.
"""

from __future__ import annotations

import torch
from torch import Tensor


def main_component(directions_HDD: Tensor, loadings_HD: Tensor, count: int) -> Tensor:
    """c = sum_{i<=K} alpha_i v_i. RestoreLCC eq. 4. Returns [..., H, D]; with K = D it is the mean row of dZ."""
    return torch.einsum("...hk,...hkd->...hd", loadings_HD[..., :count], directions_HDD[..., :count, :])
