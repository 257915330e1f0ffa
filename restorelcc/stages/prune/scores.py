"""Importance scores of unstructured pruners: the lower the score, the sooner a weight goes.

Letters: O output features, I input features.
"""

from __future__ import annotations

from torch import Tensor


def magnitude_score(weight_OI: Tensor) -> Tensor:
    """S_oi = |W_oi|. Han et al. 2015. Returns float32 [O, I]."""
    return weight_OI.float().abs()


def wanda_score(weight_OI: Tensor, squares_I: Tensor) -> Tensor:
    """S_oi = |W_oi| * ||x_i||_2. Sun et al. 2024 (Wanda), eq. 1.

    squares_I [I]: sum of x_i^2 over all calibration tokens. Returns float32 [O, I].
    """
    return weight_OI.float().abs() * squares_I.to(weight_OI.device).float().sqrt()
