"""The contrastive probe of RestoreLCC, for all heads of a layer at once.

Letters: N tuples, H heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from restorelcc.core.runtime import map_on_all_cores
from restorelcc.probe.newton import PairProbe, fit_pairs

Solver = Literal["auto", "newton", "adam"]
_HEADS_AT_ONCE = 8  # of large ones, so that they fit into the processor's cache
_SMALL = 16  # head dim up to which `auto` takes the literal recipe


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
    steps: int = 200,
    learning_rate: float = 0.01,
    solver: Solver = "auto",
) -> ProbeScores:
    """sigmoid(w_h . m + a_h) tells m+ = [z_c^q ; z_d^{q r+}] from m- = [z_c^q ; z_d^{q r-}]. RestoreLCC eq. 7.

    recovered_NHD: the pruned model's question activation plus its lost component; positive/negative_NHD: the dense
    model's activation at the last token of question + response; heldout_N bool: pairs that are scored, not trained on.
    solver `adam` is the literal recipe, full-batch Adam from zero weights; `newton` goes to where it tends in a few
    steps (steps and learning_rate have no meaning for it); `auto` is adam for heads of up to 16 numbers, where
    it is cheap, else newton. In float32; heads do not influence one another.
    """
    head_dim = recovered_NHD.shape[2]
    literal = solver == "adam" or (solver == "auto" and head_dim <= _SMALL)
    size = recovered_NHD.shape[1] if head_dim <= _SMALL else _HEADS_AT_ONCE
    parts = (recovered_NHD, positive_NHD, negative_NHD)

    train_K, test_K = (~heldout_N).nonzero()[:, 0], heldout_N.nonzero()[:, 0]

    def scores(part: tuple[Tensor, ...]) -> ProbeScores:
        def rows(which_K: Tensor) -> list[Tensor]:
            return [each.index_select(0, which_K).transpose(0, 1).float() for each in part]

        train = rows(train_K)
        if literal:
            probe = fit_adam(*(each.contiguous() for each in train), steps=steps, learning_rate=learning_rate)
        else:
            probe = fit_pairs(*train)
        return _judged(probe, *rows(test_K))

    found = map_on_all_cores(scores, list(zip(*(part.split(size, dim=1) for part in parts), strict=True)))
    return ProbeScores(torch.cat([part.accuracy_H for part in found]), torch.cat([part.log_loss_H for part in found]))


def fit_adam(
    question_HND: Tensor, positive_HND: Tensor, negative_HND: Tensor, *, steps: int, learning_rate: float
) -> PairProbe:
    """The literal recipe: `steps` full-batch steps of Adam on the mean log-loss, from zero weights, for each head.

    The gradient by a logit z is sigmoid(z) - y over the number of members; it is written out here, with autograd's own
    operations in autograd's order, at a fraction of the time that recording them takes.
    """
    heads, pairs, dim = question_HND.shape
    weights_HX = torch.zeros(heads, 2 * dim + 1)
    question_HD, answer_HD, bias_H = weights_HX[:, :dim], weights_HX[:, dim:-1], weights_HX[:, -1]
    optimizer = torch.optim.Adam([weights_HX], lr=learning_rate)
    weights_HX.grad = gradient_HX = torch.empty_like(weights_HX)
    share_HN = torch.full((), 0.5).div(pairs).expand(heads, pairs)
    for _ in range(steps):
        of_question_HN = _logits(question_HND, question_HD)
        p_HN = of_question_HN + _logits(positive_HND, answer_HD) + bias_H[:, None]
        n_HN = of_question_HN + _logits(negative_HND, answer_HD) + bias_H[:, None]
        # What autograd calls for softplus(-z) and softplus(z).
        p_HN = torch.ops.aten.softplus_backward(share_HN, p_HN.neg_(), 1, 20).neg_()
        n_HN = torch.ops.aten.softplus_backward(share_HN, n_HN, 1, 20)
        gradient_HX[:, :dim] = _pull(question_HND, n_HN) + _pull(question_HND, p_HN)
        gradient_HX[:, dim:-1] = _pull(negative_HND, n_HN) + _pull(positive_HND, p_HN)
        gradient_HX[:, -1] = n_HN.sum(1) + p_HN.sum(1)
        optimizer.step()
    return PairProbe(question_HD, answer_HD, bias_H)


def _logits(part_HND: Tensor, weights_HD: Tensor) -> Tensor:
    return torch.bmm(part_HND, weights_HD[..., None])[..., 0]


def _pull(part_HND: Tensor, gradient_HN: Tensor) -> Tensor:
    """The gradient by a part's weights, from that by the logits."""
    return torch.bmm(part_HND.mT, gradient_HN[..., None])[..., 0]


def _judged(probe: PairProbe, question_HND: Tensor, positive_HND: Tensor, negative_HND: Tensor) -> ProbeScores:
    p_HN, n_HN = (probe.logits_HN(question_HND, side).double() for side in (positive_HND, negative_HND))
    accuracy_H = ((p_HN > 0).double() + (n_HN <= 0).double()).mean(dim=1) / 2
    return ProbeScores(accuracy_H, (softplus(-p_HN) + softplus(n_HN)).mean(dim=1) / 2)


def heldout_mask(samples: int, share: float, seed: int) -> Tensor:
    """Which of N pairs are held out, bool [N]: round(share * N) of them, at least one on either side."""
    count = min(max(1, round(share * samples)), samples - 1)
    chosen = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))[:count]
    mask = torch.zeros(samples, dtype=torch.bool)
    mask[chosen] = True
    return mask
