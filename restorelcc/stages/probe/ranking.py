"""Order heads by a score.

Letters: L layers, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rank_heads(score_LH: Tensor, log_loss_LH: Tensor) -> Tensor:
    """Rank of every head, 0 the best: highest score, then lowest log-loss, then lowest (layer, head). [L, H] int64."""
    score, log_loss = score_LH.flatten().tolist(), log_loss_LH.flatten().tolist()
    order = sorted(range(len(score)), key=lambda flat: (-score[flat], log_loss[flat], flat))
    rank = torch.empty(len(order), dtype=torch.long)
    rank[torch.tensor(order)] = torch.arange(len(order))
    return rank.reshape(score_LH.shape)
