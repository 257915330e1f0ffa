"""The contrastive probe of RestoreLCC, for all heads of a layer at once; and the scores its ablations put in its place.

Letters: N tuples or samples, L layers, H heads, D head dim, K components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from restorelcc.models.runtime import map_on_all_cores
from restorelcc.stages.probe.newton import PairProbe, fit_pairs

Solver = Literal["auto", "newton", "adam"]
_NEWTON_AT_ONCE = 8  # heads, so that they fit into the processor's cache
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
    literal = solver == "adam" or (solver == "auto" and recovered_NHD.shape[2] <= _SMALL)
    parts = (recovered_NHD, positive_NHD, negative_NHD)
    train_K, test_K = (~heldout_N).nonzero()[:, 0], heldout_N.nonzero()[:, 0]

    def rows(part: tuple[Tensor, ...], which_K: Tensor) -> list[Tensor]:
        return [each.index_select(0, which_K).transpose(0, 1).float() for each in part]

    if literal:
        probe = fit_adam(*rows(parts, train_K), steps=steps, learning_rate=learning_rate)
        return _judged(probe, *rows(parts, test_K))

    def scores(part: tuple[Tensor, ...]) -> ProbeScores:
        return _judged(fit_pairs(*rows(part, train_K)), *rows(part, test_K))

    batches = list(zip(*(part.split(_NEWTON_AT_ONCE, dim=1) for part in parts), strict=True))
    found = map_on_all_cores(scores, batches)
    return ProbeScores(torch.cat([part.accuracy_H for part in found]), torch.cat([part.log_loss_H for part in found]))


def fit_adam(
    question_HND: Tensor, positive_HND: Tensor, negative_HND: Tensor, *, steps: int, learning_rate: float
) -> PairProbe:
    """The literal recipe: `steps` full-batch steps of Adam on the mean log-loss, from zero weights, for each head.

    The gradient by a logit z is sigmoid(z) - y over the number of members. It is written out here, with the operations
    of autograd in their order: the same weights, without the time that recording operations on small tensors takes.
    """
    heads, pairs, dim = question_HND.shape
    # [answer ; question] of all members, r+ before r-.
    members_XNC = torch.cat([torch.cat([side, question_HND], dim=-1) for side in (positive_HND, negative_HND)])
    answers_XND, questions_HND = members_XNC[..., :dim], members_XNC[:heads, :, dim:]
    sign_S11 = torch.tensor([-1.0, 1.0])[:, None, None]
    share_SHN = (torch.full((), 0.5).div(pairs) * sign_S11).expand(2, heads, pairs).contiguous()
    weights = torch.zeros(heads * (2 * dim + 1))
    of_both, bias_H = weights.split([heads * 2 * dim, heads])
    answer_HD, question_HD = of_both.view(heads, 2, dim).unbind(1)
    adam = torch.optim.Adam([weights], lr=learning_rate, foreach=False)
    for _ in range(steps):
        wrong_SHN = torch.bmm(answers_XND, torch.cat([answer_HD, answer_HD])[..., None]).view(2, heads, pairs)
        wrong_SHN += torch.bmm(questions_HND, question_HD[..., None])[..., 0]
        wrong_SHN += bias_H[:, None]
        wrong_SHN[0].neg_()
        # What autograd calls for softplus(wrong), which is the log-loss.
        pull_SHN = torch.ops.aten.softplus_backward(share_SHN, wrong_SHN, 1, 20)
        by_weight_XC1 = torch.bmm(members_XNC.mT, pull_SHN.view(-1, pairs, 1))
        gradients_SX = torch.cat([by_weight_XC1.view(2, -1), pull_SHN.sum(2)], dim=1)
        weights.grad = gradients_SX[0] + gradients_SX[1]
        adam.step()
    return PairProbe(question_HD, answer_HD, bias_H)


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


def rank_heads(score_LH: Tensor, log_loss_LH: Tensor) -> Tensor:
    """Rank of every head, 0 the best: highest score, then lowest log-loss, then lowest (layer, head). [L, H] int64."""
    score, log_loss = score_LH.flatten().tolist(), log_loss_LH.flatten().tolist()
    order = sorted(range(len(score)), key=lambda flat: (-score[flat], log_loss[flat], flat))
    rank = torch.empty(len(order), dtype=torch.long)
    rank[torch.tensor(order)] = torch.arange(len(order))
    return rank.reshape(score_LH.shape)
