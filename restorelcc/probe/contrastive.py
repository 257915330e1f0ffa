"""The contrastive probe of RestoreLCC, for all heads of a layer at once.

Letters: N tuples, H heads, D head dim, F = 2D probe inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


@dataclass(frozen=True)
class ProbeScores:
    """Per head, on the held-out pairs: accuracy and mean log-loss, [H] float64."""

    accuracy_H: Tensor
    log_loss_H: Tensor


def probe_heads(
    recovered_NHD: Tensor,
    positive_NHD: Tensor,
    negative_NHD: Tensor,
    heldout_N: Tensor,
    *,
    steps: int,
    learning_rate: float,
) -> ProbeScores:
    """sigmoid(w_h . m + a_h) tells m+ = [z_c^q ; z_d^{q r+}] from m- = [z_c^q ; z_d^{q r-}]. RestoreLCC eq. 7.

    recovered_NHD: the pruned model's question activation plus its lost component; positive/negative_NHD: the dense
    model's activation at the last token of question + response; heldout_N bool: pairs that are scored, not trained on.
    Full-batch Adam from zero weights, in float32; heads do not influence one another.
    """
    half_HNF = [
        torch.cat([recovered_NHD, other_NHD], dim=-1).transpose(0, 1).float()
        for other_NHD in (positive_NHD, negative_NHD)
    ]
    train_HNF = torch.cat([half[:, ~heldout_N] for half in half_HNF], dim=1)
    test_HNF = torch.cat([half[:, heldout_N] for half in half_HNF], dim=1)
    heads, _, width = train_HNF.shape
    weight_HF = torch.zeros(heads, width, requires_grad=True)
    bias_H1 = torch.zeros(heads, 1, requires_grad=True)
    optimizer = torch.optim.Adam([weight_HF, bias_H1], lr=learning_rate)
    label_HN = _labels(train_HNF)
    for _ in range(steps):
        optimizer.zero_grad()
        logit_HN = torch.einsum("hnf,hf->hn", train_HNF, weight_HF) + bias_H1
        # The sum over heads of each head's mean loss: its gradient splits into the heads' own.
        binary_cross_entropy_with_logits(logit_HN, label_HN, reduction="none").mean(dim=1).sum().backward()
        optimizer.step()
    with torch.no_grad():
        logit_HN = (torch.einsum("hnf,hf->hn", test_HNF, weight_HF) + bias_H1).double()
        label_HN = _labels(test_HNF).double()
        accuracy_H = ((logit_HN > 0) == (label_HN > 0.5)).double().mean(dim=1)
        log_loss_H = binary_cross_entropy_with_logits(logit_HN, label_HN, reduction="none").mean(dim=1)
    return ProbeScores(accuracy_H, log_loss_H)


def _labels(stacked_HNF: Tensor) -> Tensor:
    """1 for the first half of the rows (positive members), 0 for the second; [H, N]."""
    pairs = stacked_HNF.shape[1] // 2
    row = torch.cat([torch.ones(pairs), torch.zeros(pairs)])
    return row.expand(stacked_HNF.shape[0], -1)


def heldout_mask(samples: int, share: float, seed: int) -> Tensor:
    """Which of N pairs are held out, bool [N]: round(share * N) of them, at least one on either side."""
    count = min(max(1, round(share * samples)), samples - 1)
    chosen = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))[:count]
    mask = torch.zeros(samples, dtype=torch.bool)
    mask[chosen] = True
    return mask
