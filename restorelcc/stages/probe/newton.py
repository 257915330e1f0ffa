"""The probe's logistic regressions, all heads at once, by conjugate gradients in the metric of Newton's first step.

Letters: N pairs, M = 2N members of pairs, H heads, D head dim, F = 2D inputs without the constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 0.05  # times |gradient at zero weights|; see fit_pairs
_FLOOR = 1e-5  # least ridge: the loss of separable pairs has no optimum without one
_MOST, _TOLERANCE = 60, 2e-5
_LINE_STEPS = 3


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

    The first step is Newton's own. Its Hessian, X^T X / 4, bounds every later one from above, so that it is factored
    once; the further steps are conjugate gradients in its metric (Polak and Ribiere), each of which goes to the least
    loss along its direction. A head is done when the next step promises less than 2e-5 of what the steps before it
    have brought.
    """
    pairs = _Pairs(question_HND, positive_HND, negative_HND)
    w = pairs.zero_weights()
    wrong_HM = pairs.wrong_HM(w)
    direction, last_gradient, last_promise_H = w, w, torch.ones_like(w.b_H)
    fallen_H, done_H = torch.zeros_like(w.b_H), torch.zeros_like(w.b_H, dtype=torch.bool)
    for _ in range(_MOST):
        gradient = pairs.gradient(wrong_HM, w)
        step = pairs.newton_step(gradient)
        promise_H = gradient.dot_H(step)
        done_H |= promise_H <= _TOLERANCE * fallen_H + 1e-9
        if done_H.all():
            break
        beta_H = (promise_H - last_gradient.dot_H(step)) / last_promise_H
        conjugate = step.plus(beta_H.clamp(min=0), direction)
        # Rounding, or a line search that ended early, may turn it uphill.
        direction = step.plus(beta_H.clamp(min=0) * (gradient.dot_H(conjugate) > 0), direction)
        last_gradient, last_promise_H = gradient, promise_H.clamp(min=1e-30)
        along_HM = pairs.wrong_HM(direction)
        length_H = pairs.line_minimum_H(wrong_HM, along_HM, w, direction).masked_fill(done_H, 0)
        fallen_H += length_H * promise_H / 2
        w = w.plus(-length_H, direction)
        wrong_HM = wrong_HM - length_H[:, None] * along_HM
    return pairs.in_input_units(w)


@dataclass(frozen=True)
class _Weights:
    """Weights (or a gradient by them, or a direction): of the inputs, and the constant."""

    w_HF: Tensor
    b_H: Tensor

    def dot_H(self, other: _Weights) -> Tensor:
        return (self.w_HF * other.w_HF).sum(1) + self.b_H * other.b_H

    def plus(self, factor_H: Tensor, other: _Weights) -> _Weights:
        """self + factor * other."""
        return _Weights(
            torch.addcmul(self.w_HF, factor_H[:, None], other.w_HF), torch.addcmul(self.b_H, factor_H, other.b_H)
        )


class _Pairs:
    """Pairs as q, m and d, where r+ = m + d and r- = m - d, and what the minimization asks of them.

    q and m are shifted to mean 0, which changes how rounding falls and not the optimum: at zero weights the constant
    is then independent of the others. What differs between inputs in size is made up for in the Hessian's factor.
    """

    def __init__(self, question_HND: Tensor, positive_HND: Tensor, negative_HND: Tensor) -> None:
        dim = question_HND.shape[-1]
        self.shared_HNF = torch.cat([question_HND, (positive_HND + negative_HND) / 2], dim=2)
        self.mean_HF = self.shared_HNF.mean(1)
        self.shared_HNF -= self.mean_HF[:, None]
        self.d_HND = (positive_HND - negative_HND) / 2
        # At zero weights the question's gradient is zero: it pulls on both members of a pair alike.
        slope_HD = self.d_HND.mean(1).abs() / 2
        self.ridge_HF = torch.cat([torch.zeros_like(slope_HD), RIDGE * slope_HD], dim=1) + _FLOOR
        q_HND, m_HND = self.shared_HNF[..., :dim], self.shared_HNF[..., dim:]
        qm = q_HND.mT @ m_HND
        mm = torch.baddbmm(m_HND.mT @ m_HND, self.d_HND.mT, self.d_HND)
        upper = torch.cat([torch.cat([q_HND.mT @ q_HND, qm], dim=2), torch.cat([qm.mT, mm], dim=2)], dim=1)
        self.factor_HFF, self.scale_HF = _scaled_cholesky(upper / (4 * question_HND.shape[1]), self.ridge_HF)

    def zero_weights(self) -> _Weights:
        return _Weights(torch.zeros_like(self.ridge_HF), torch.zeros_like(self.ridge_HF[:, 0]))

    def wrong_HM(self, w: _Weights) -> Tensor:
        """How wrong each member of a pair comes out, [H, 2N]: -z of r+, then z of r-, where z = w . [q ; r] + b."""
        shared_HN = (self.shared_HNF @ w.w_HF[..., None])[..., 0] + w.b_H[:, None]
        apart_HN = (self.d_HND @ w.w_HF[:, self.d_HND.shape[-1] :, None])[..., 0]
        return torch.cat([-shared_HN - apart_HN, shared_HN - apart_HN], dim=1)

    def gradient(self, wrong_HM: Tensor, w: _Weights) -> _Weights:
        """Of the mean of log(1 + exp(wrong)) and the ridge."""
        p_HN, n_HN = (torch.sigmoid(wrong_HM) / wrong_HM.shape[1]).chunk(2, dim=1)
        both_H1N = (n_HN - p_HN)[:, None]
        found_HF = torch.addcmul((both_H1N @ self.shared_HNF)[:, 0], self.ridge_HF, w.w_HF)
        found_HF[:, self.d_HND.shape[-1] :] -= ((n_HN + p_HN)[:, None] @ self.d_HND)[:, 0]
        return _Weights(found_HF, both_H1N.sum((1, 2)))

    def newton_step(self, gradient: _Weights) -> _Weights:
        """The gradient times the inverse of the Hessian at zero weights."""
        scaled_HF1 = (gradient.w_HF * self.scale_HF)[..., None]
        step_HF = torch.cholesky_solve(scaled_HF1, self.factor_HFF)[..., 0] * self.scale_HF
        return _Weights(step_HF, 4 * gradient.b_H)

    def line_minimum_H(self, wrong_HM: Tensor, along_HM: Tensor, w: _Weights, direction: _Weights) -> Tensor:
        """t >= 0 at which the loss at w - t direction is least, by Newton's method kept within a bracket."""
        ridged_HF = self.ridge_HF * direction.w_HF
        penalty_H, pull_H = (ridged_HF * direction.w_HF).sum(1), (ridged_HF * w.w_HF).sum(1)
        low_H, t_H = torch.zeros_like(penalty_H), torch.ones_like(penalty_H)
        high_H = torch.full_like(t_H, torch.inf)
        for _ in range(_LINE_STEPS):
            weighted_HM = torch.sigmoid(torch.addcmul(wrong_HM, t_H[:, None], along_HM, value=-1)) * along_HM
            downhill_H = weighted_HM.mean(1) + pull_H - t_H * penalty_H  # minus the derivative by t
            bend_H = (weighted_HM * (along_HM - weighted_HM)).mean(1) + penalty_H
            low_H, high_H = torch.where(downhill_H > 0, t_H, low_H), torch.where(downhill_H > 0, high_H, t_H)
            tried_H = t_H + downhill_H / bend_H.clamp(min=1e-30)
            tried_H = torch.minimum(tried_H, 4 * t_H + 4)  # far away the loss is nearly straight
            t_H = torch.where((tried_H >= low_H) & (tried_H <= high_H), tried_H, (low_H + high_H) / 2)
        return t_H

    def in_input_units(self, w: _Weights) -> PairProbe:
        dim = self.d_HND.shape[-1]
        return PairProbe(w.w_HF[:, :dim], w.w_HF[:, dim:], w.b_H - (w.w_HF * self.mean_HF).sum(1))


def _scaled_cholesky(hessian_HFF: Tensor, ridge_HF: Tensor) -> tuple[Tensor, Tensor]:
    """The factor of S (hessian + diag(ridge)) S and S, which makes its diagonal 1: inputs may differ much in size."""
    diagonal_HF = hessian_HFF.diagonal(dim1=1, dim2=2)
    diagonal_HF += ridge_HF
    scale_HF = diagonal_HF.rsqrt()
    hessian_HFF = hessian_HFF * scale_HF[:, :, None] * scale_HF[:, None, :]
    factor_HFF, failed_H = torch.linalg.cholesky_ex(hessian_HFF)
    if failed_H.any():  # rounding has made it indefinite: inputs are nearly dependent
        hessian_HFF.diagonal(dim1=1, dim2=2).add_(1e-4)
        factor_HFF = torch.linalg.cholesky(hessian_HFF)
    return factor_HFF, scale_HF
