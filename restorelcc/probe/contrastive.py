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
    """The literal recipe: `steps` full-batch steps of Adam on the mean log-loss, from zero weights, for each head."""
    shape = (question_HND.shape[0], question_HND.shape[2])
    parameters = [torch.zeros(shape), torch.zeros(shape), torch.zeros(shape[0])]
    optimizer = torch.optim.Adam([parameter.requires_grad_() for parameter in parameters], lr=learning_rate)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            probe = PairProbe(*parameters)
            loss_H = (
                softplus(-probe.logits_HN(question_HND, positive_HND))
                + softplus(probe.logits_HN(question_HND, negative_HND))
            ).mean(dim=1) / 2
            # The sum over heads of each head's mean loss: its gradient splits into the heads' own.
            loss_H.sum().backward()
            optimizer.step()
    return PairProbe(*(parameter.detach() for parameter in parameters))


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
