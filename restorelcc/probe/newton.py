"""The probe's logistic regressions, all heads at once, by Newton's method.

Letters: N pairs, H heads, D head dim, F = 2D + 1 inputs with the constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

RIDGE = 0.05  # times |gradient at zero weights|; see fit_pairs
_FLOOR = 1e-5  # least ridge: the loss of separable pairs has no optimum without one
_REFRESH, _MOST, _TOLERANCE = 3, 30, 1e-2


@dataclass(frozen=True)
class PairProbe:
    """Weights for the question's and the answer's half, and the constant: w_HD, v_HD, b_H."""

    question_HD: Tensor
    answer_HD: Tensor
    bias_H: Tensor

    def logits_HN(self, question_HND: Tensor, answer_HND: Tensor) -> Tensor:
        """The probe's logit for every [question ; answer]."""
        of_question_HN = torch.einsum("hnd,hd->hn", question_HND, self.question_HD)
        return of_question_HN + torch.einsum("hnd,hd->hn", answer_HND, self.answer_HD) + self.bias_H[:, None]


def fit_pairs(question_HND: Tensor, positive_HND: Tensor, negative_HND: Tensor) -> PairProbe:
    """argmin_w mean log(1 + exp(-y (w . [q ; a] + b))) + 1/2 sum_j lambda_j w_j^2, y = 1 for r+ and -1 for r-. Eq. 7.

    The literal recipe (200 steps of Adam at 0.01) ends before its loss has converged: a weight moves by at most 0.01 a
    step, whatever the size of its gradient. lambda_j = 0.05 |g_j|, g_j the gradient at zero weights, stands for that
    limit: it is what lets a weight move no further than 1 / 0.05 under a gradient that stays, and it ranks heads as the
    recipe does (docs/probing.md has the agreement).

    Both members of a pair hold the same question, so that no product with it is computed twice. Inputs are shifted to
    mean 0 and scaled to variance 1, which changes how rounding falls and not the optimum. Newton's steps use a Hessian
    that is renewed at every third step, and the bound X^T X / 4, which never overshoots, where a step made the loss
    worse.
    """
    pairs = _Pairs(question_HND, positive_HND, negative_HND)
    w_HF = torch.zeros_like(pairs.ridge_HF)
    upper = factor = pairs.factor()
    logits = pairs.logits(w_HF)
    loss_H = pairs.loss_H(logits, w_HF)
    for step in range(1, _MOST + 1):
        if step % _REFRESH == 2:  # the first step is Newton's own: at zero weights W is 1/4
            factor = pairs.factor(*(torch.sigmoid(z_HN) * torch.sigmoid(-z_HN) for z_HN in logits))
        gradient_HF1 = pairs.gradient_HF(logits, w_HF)[..., None]
        move_HF = torch.cholesky_solve(gradient_HF1, factor)[..., 0]
        tried_HF = w_HF - move_HF
        tried = pairs.logits(tried_HF)
        tried_loss_H = pairs.loss_H(tried, tried_HF)
        if (worse_H := ~(tried_loss_H <= loss_H + 1e-6)).any():
            safe_HF = w_HF - torch.cholesky_solve(gradient_HF1, upper)[..., 0]
            tried_HF = torch.where(worse_H[:, None], safe_HF, tried_HF)
            factor = torch.where(worse_H[:, None, None], upper, factor)
            tried = pairs.logits(tried_HF)
            tried_loss_H = pairs.loss_H(tried, tried_HF)
        moved = ((tried_HF - w_HF).norm(dim=1) / tried_HF.norm(dim=1).clamp(min=1e-6)).max()
        w_HF, logits, loss_H = tried_HF, tried, tried_loss_H
        if moved < _TOLERANCE:
            break
    return pairs.in_input_units(w_HF)


class _Pairs:
    """Standardized pairs and what Newton's method asks of them."""

    def __init__(self, question_HND: Tensor, positive_HND: Tensor, negative_HND: Tensor) -> None:
        self.q_mean_H1D, self.q_std_H1D = question_HND.mean(1, keepdim=True), _spread(question_HND, question_HND)
        self.a_mean_H1D = (positive_HND.mean(1, keepdim=True) + negative_HND.mean(1, keepdim=True)) / 2
        self.a_std_H1D = _spread(positive_HND - self.a_mean_H1D, negative_HND - self.a_mean_H1D, centred=True)
        self.q_HND = (question_HND - self.q_mean_H1D) / self.q_std_H1D
        self.p_HND = (positive_HND - self.a_mean_H1D) / self.a_std_H1D
        self.n_HND = (negative_HND - self.a_mean_H1D) / self.a_std_H1D
        # At zero weights the question's gradient is zero: it pulls on both members of a pair alike.
        raw_HD = (positive_HND.mean(1) - negative_HND.mean(1)).abs() / 4
        answer_HD = RIDGE * raw_HD + _FLOOR
        flat = torch.full_like(answer_HD, _FLOOR)
        ridge = [flat / self.q_std_H1D[:, 0] ** 2, answer_HD / self.a_std_H1D[:, 0] ** 2, flat[:, :1] * 0.01]
        self.ridge_HF = torch.cat(ridge, dim=1)

    def logits(self, w_HF: Tensor) -> tuple[Tensor, Tensor]:
        """w . [q ; p] + b and w . [q ; n] + b, [H, N] each."""
        dim = self.q_HND.shape[-1]
        shared_HN = (self.q_HND @ w_HF[:, :dim, None])[..., 0] + w_HF[:, -1:]
        v_HD1 = w_HF[:, dim:-1, None]
        return shared_HN + (self.p_HND @ v_HD1)[..., 0], shared_HN + (self.n_HND @ v_HD1)[..., 0]

    def loss_H(self, logits: tuple[Tensor, Tensor], w_HF: Tensor) -> Tensor:
        z_p, z_n = logits
        return (softplus(-z_p) + softplus(z_n)).mean(1) / 2 + (self.ridge_HF * w_HF * w_HF).sum(1) / 2

    def gradient_HF(self, logits: tuple[Tensor, Tensor], w_HF: Tensor) -> Tensor:
        r_p, r_n = torch.sigmoid(logits[0]) - 1, torch.sigmoid(logits[1])
        rows = 2 * r_p.shape[1]
        parts = [
            ((r_p + r_n)[:, None] @ self.q_HND)[:, 0],
            (r_p[:, None] @ self.p_HND + r_n[:, None] @ self.n_HND)[:, 0],
            (r_p + r_n).sum(1, keepdim=True),
        ]
        return torch.cat(parts, dim=1) / rows + self.ridge_HF * w_HF

    def factor(self, weight_p_HN: Tensor | None = None, weight_n_HN: Tensor | None = None) -> Tensor:
        """Cholesky factor of X^T W X / 2N + diag(lambda); W = 1/4, the most it can be, where no weights are given."""
        rows = 2 * self.q_HND.shape[1]
        if weight_p_HN is None or weight_n_HN is None:
            both_HN = torch.full_like(self.q_HND[..., 0], 0.5)
            p_HND, n_HND, q_HND = self.p_HND / 4, self.n_HND / 4, self.q_HND / 2
        else:
            both_HN = weight_p_HN + weight_n_HN
            p_HND, n_HND = self.p_HND * weight_p_HN[..., None], self.n_HND * weight_n_HN[..., None]
            q_HND = self.q_HND * both_HN[..., None]
        qq, qa = self.q_HND.mT @ q_HND, self.q_HND.mT @ (p_HND + n_HND)
        aa = self.p_HND.mT @ p_HND + self.n_HND.mT @ n_HND
        q1, a1 = q_HND.sum(1)[..., None], (p_HND.sum(1) + n_HND.sum(1))[..., None]
        total = both_HN.sum(1)[:, None, None]
        top, middle = torch.cat([qq, qa, q1], dim=2), torch.cat([qa.mT, aa, a1], dim=2)
        hessian_HFF = torch.cat([top, middle, torch.cat([q1.mT, a1.mT, total], dim=2)], dim=1) / rows
        hessian_HFF.diagonal(dim1=1, dim2=2).add_(self.ridge_HF)
        factor_HFF, failed_H = torch.linalg.cholesky_ex(hessian_HFF)
        if failed_H.any():  # rounding has made it indefinite: inputs are nearly dependent
            size_H1 = hessian_HFF.diagonal(dim1=1, dim2=2).mean(dim=1, keepdim=True)
            hessian_HFF.diagonal(dim1=1, dim2=2).add_(1e-4 * size_H1)
            factor_HFF = torch.linalg.cholesky(hessian_HFF)
        return factor_HFF

    def in_input_units(self, w_HF: Tensor) -> PairProbe:
        dim = self.q_HND.shape[-1]
        w_HD, v_HD = w_HF[:, :dim] / self.q_std_H1D[:, 0], w_HF[:, dim:-1] / self.a_std_H1D[:, 0]
        shift_H = (w_HD * self.q_mean_H1D[:, 0]).sum(1) + (v_HD * self.a_mean_H1D[:, 0]).sum(1)
        return PairProbe(w_HD, v_HD, w_HF[:, -1] - shift_H)


def _spread(one_HND: Tensor, other_HND: Tensor, *, centred: bool = False) -> Tensor:
    """Standard deviation over both, [H, 1, D]; 1 where nothing varies."""
    parts = (one_HND, other_HND) if centred else (one_HND - one_HND.mean(1, keepdim=True),) * 2
    variance = (parts[0].square().mean(1, keepdim=True) + parts[1].square().mean(1, keepdim=True)) / 2
    return torch.where(variance > 1e-12, variance.sqrt(), torch.ones_like(variance))
