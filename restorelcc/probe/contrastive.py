"""The contrastive probe of RestoreLCC, for all heads of a layer at once.

Letters: N tuples, H heads, D head dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from restorelcc.core.runtime import map_on_all_cores
from restorelcc.probe.newton import PairProbe, fit_pairs

Solver = Literal["auto", "newton", "adam"]
_HEADS_AT_ONCE = 8  # so that they fit into the processor's cache
_SMALL = 16  # head dim up to which `auto` takes the literal recipe
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8  # of Adam, as torch.optim has them


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

    found = map_on_all_cores(scores, list(zip(*(part.split(_HEADS_AT_ONCE, dim=1) for part in parts), strict=True)))
    return ProbeScores(torch.cat([part.accuracy_H for part in found]), torch.cat([part.log_loss_H for part in found]))


def fit_adam(
    question_HND: Tensor, positive_HND: Tensor, negative_HND: Tensor, *, steps: int, learning_rate: float
) -> PairProbe:
    """The literal recipe: `steps` full-batch steps of Adam on the mean log-loss, from zero weights, for each head.

    The gradient by a logit z is sigmoid(z) - y over the number of members. It and Adam's update are written out here,
    with the operations of autograd and torch.optim in their order: the same weights, without the time that recording
    and dispatching operations on small tensors takes.
    """
    heads, pairs, dim = question_HND.shape
    # The question stands behind each answer, so that one product has the gradients of all four. Sides: r+, r-.
    parts_XND = torch.stack([positive_HND, question_HND, negative_HND, question_HND]).flatten(0, 1)
    sign_S11 = torch.tensor([-1.0, 1.0])[:, None, None]
    share_SHN = torch.full((), 0.5).div(pairs).expand(2, heads, pairs)
    adam = _Adam(learning_rate, answer=(heads, dim), question=(heads, dim), bias=(heads,))
    answer_HD, question_HD, bias_H = adam.weights
    for _ in range(steps):
        weights_XD1 = torch.cat([answer_HD, question_HD, answer_HD])[..., None]
        logits_3HN = torch.bmm(parts_XND[: 3 * heads], weights_XD1).view(3, heads, pairs)
        wrong_SHN = (logits_3HN[::2] + logits_3HN[1] + bias_H[:, None]).mul_(sign_S11)
        # What autograd calls for softplus(wrong).
        pull_SHN = torch.ops.aten.softplus_backward(share_SHN, wrong_SHN, 1, 20).mul_(sign_S11)
        pull_XN1 = pull_SHN[:, None].expand(2, 2, heads, pairs).reshape(-1, pairs, 1)
        by_side_S2HD = torch.bmm(parts_XND.mT, pull_XN1).view(2, 2, heads, dim)
        (answer, question), bias = by_side_S2HD[0] + by_side_S2HD[1], pull_SHN[0].sum(1) + pull_SHN[1].sum(1)
        adam.step(answer, question, bias)
    return PairProbe(question_HD, answer_HD, bias_H)


class _Adam:
    """Adam from zero weights (Kingma and Ba, algorithm 1), all weights in one tensor and shown as parts of it."""

    def __init__(self, learning_rate: float, **shapes: tuple[int, ...]) -> None:
        sizes = [math.prod(shape) for shape in shapes.values()]
        self._weights, self._mean, self._square = torch.zeros(3, sum(sizes)).unbind()
        parts = self._weights.split(sizes)
        self.weights = [part.view(shape) for part, shape in zip(parts, shapes.values(), strict=True)]
        self._learning_rate, self._steps = learning_rate, 0

    def step(self, *gradients: Tensor) -> None:
        """Move the weights, by gradients in their order."""
        gradient = torch.cat([each.flatten() for each in gradients])
        self._steps += 1
        self._mean.lerp_(gradient, 1 - _BETA_1)
        self._square.mul_(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
        size = (self._square.sqrt() / (1 - _BETA_2**self._steps) ** 0.5).add_(_EPSILON)
        self._weights.addcdiv_(self._mean, size, value=-self._learning_rate / (1 - _BETA_1**self._steps))


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
