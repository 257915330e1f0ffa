"""The bilinear probe: it sees how question and answer fit together, which no linear layer over both can see.

Letters: N tuples, H heads, D head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from restorelcc.models.runtime import map_on_all_cores


def relational_scores(recovered_NHD: Tensor, positive_NHD: Tensor, negative_NHD: Tensor, heldout_N: Tensor) -> Tensor:
    """Share of held-out pairs with [q ; 1]^T B r+ > [q ; 1]^T B r-, [H] float64; 0.5 is chance.

    q: the recovered question activation z_c^q, r+ and r-: the dense activation after either response, as in eq. 7,
    each input shifted and scaled to mean 0 and variance 1 on the training pairs. A pair shares q, so only
    their difference d = r+ - r- matters: B = argmin sum_n (1 - [q_n ; 1]^T B d_n)^2 + lambda |B|^2, solved in its dual
    with the kernel (1 + q.q'/D)(d.d'/D); lambda is the kernel's mean diagonal. Ties count half.
    """

    def scores(part: tuple[Tensor, ...]) -> Tensor:
        question_HND, positive_HND, negative_HND = (each.transpose(0, 1).double() for each in part)
        return _scores(question_HND, positive_HND, negative_HND, heldout_N)

    parts = (recovered_NHD, positive_NHD, negative_NHD)
    # Head by head: the kernel of one holds N x N numbers.
    return torch.cat(map_on_all_cores(scores, list(zip(*(part.split(1, dim=1) for part in parts), strict=True))))


def _scores(question_HND: Tensor, positive_HND: Tensor, negative_HND: Tensor, heldout_N: Tensor) -> Tensor:
    dim = question_HND.shape[-1]
    q_HND = _standardized(question_HND, question_HND[:, ~heldout_N])
    answers = torch.cat([positive_HND[:, ~heldout_N], negative_HND[:, ~heldout_N]], dim=1)
    d_HND = _standardized(positive_HND, answers) - _standardized(negative_HND, answers)
    q_train, d_train = q_HND[:, ~heldout_N], d_HND[:, ~heldout_N]
    q_test, d_test = q_HND[:, heldout_N], d_HND[:, heldout_N]

    def kernel(q: Tensor, d: Tensor) -> Tensor:
        return (1 + q @ q_train.mT / dim) * (d @ d_train.mT / dim)

    kernel_HNN = kernel(q_train, d_train)
    diagonal_HN = kernel_HNN.diagonal(dim1=1, dim2=2)
    diagonal_HN += diagonal_HN.mean(dim=1, keepdim=True).clamp(min=1e-12)
    ones_HN1 = torch.ones_like(kernel_HNN[..., :1])
    alpha_HN1 = torch.cholesky_solve(ones_HN1, torch.linalg.cholesky(kernel_HNN))
    margin_HN = (kernel(q_test, d_test) @ alpha_HN1)[..., 0]
    return ((margin_HN > 0).double() + 0.5 * (margin_HN == 0).double()).mean(dim=1)


def _standardized(values_HND: Tensor, like_HND: Tensor) -> Tensor:
    std_H1D = like_HND.std(dim=1, correction=0, keepdim=True)
    return (values_HND - like_HND.mean(dim=1, keepdim=True)) / torch.where(std_H1D > 1e-6, std_H1D, 1.0)
