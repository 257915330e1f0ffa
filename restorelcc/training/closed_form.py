"""Compensations that are computed rather than trained, and the means and Gram matrices of inputs they come from.

Letters: B batch, T tokens, N = B*T, P chosen heads, D head dim, X = H*D, M model width, O output features, I input
features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.base.progress import progress
from restorelcc.models.hooks import observed


def mean_inputs(
    model: PreTrainedModel, linears: dict[str, nn.Linear], batches_BT: list[Tensor], title: str
) -> dict[str, Tensor]:
    """Mean over all tokens of the batches (nothing in them is padding) of each linear's input, [I] float64."""
    return _means(model, linears, batches_BT, title, lambda x_NI: x_NI.double().sum(dim=0))


def input_moments(
    model: PreTrainedModel, linears: dict[str, nn.Linear], batches_BT: list[Tensor], title: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """Means over all tokens of x [I] and of x x^T [I, I] for each linear's input x, float64.

    Linears that read one input, as q, k and v do, have the same tensors.
    """

    def moments(x_NI: Tensor) -> Tensor:
        wide_NI = x_NI.double()
        return torch.cat([wide_NI.sum(dim=0, keepdim=True), wide_NI.T @ wide_NI])

    found = _means(model, linears, batches_BT, title, moments)
    parted = {id(both): (both[0], both[1:]) for both in found.values()}
    return {name: parted[id(both)] for name, both in found.items()}


@torch.no_grad()
def _means(
    model: PreTrainedModel,
    linears: dict[str, nn.Linear],
    batches_BT: list[Tensor],
    title: str,
    summed: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    first_of: dict[str, str] = {}  # the first linear that reads what another one reads
    last: list[tuple[str, Tensor]] = []

    def add(name: str, x: Tensor) -> None:
        if last and last[0][1] is x:
            first_of[name] = last[0][0]
            return
        last[:] = [(name, x)]
        sum_of = summed(x.flatten(0, -2))
        sums[name] = sums[name] + sum_of if name in sums else sum_of

    with observed(linears.items(), add, expected=len(linears)):
        for tokens_BT in progress(batches_BT, title, "batches"):
            # The model, not its base model alone: weights that are spread over processes come together from its top.
            model(input_ids=tokens_BT, use_cache=False, logits_to_keep=1)
    count = sum(tokens_BT.numel() for tokens_BT in batches_BT)
    means = {name: sum_of / count for name, sum_of in sums.items()}
    return {name: means[first_of.get(name, name)] for name in linears}


def mean_output(weight_OI: Tensor, bias_O: Tensor | None, mean_I: Tensor) -> Tensor:
    """W mean(x) + b: the mean of a linear's output by that of its input, [O] float64."""
    output_O = weight_OI.double() @ mean_I.double()
    return output_O if bias_O is None else output_O + bias_O.to(output_O)


def removed_bias(dense_mean_O: Tensor, weight_OI: Tensor, bias_O: Tensor | None, mean_I: Tensor) -> Tensor:
    """What the pruned linear, with the bias that it may have, lacks on average. FLAP, arXiv 2312.11983.

    dense_mean_O: the dense linear's `mean_output`, mean_I that of its inputs; where no bias changed, the result is
    (W_dense - W_pruned) mean(x). Returns [O] float64.
    """
    return dense_mean_O - mean_output(weight_OI, bias_O, mean_I)


def ridge_offsets(weight_MPD: Tensor, lost_M: Tensor, damping: float) -> Tensor:
    """argmin_c |lost - sum_p W_p c_p|^2 + lambda |c|^2, the ridge of the dense out-projection's output on the pruned
    one's when only constants c_p of the chosen heads may change it. Returns [P, D] float64.

    Summed over tokens the constant's fit depends on the mean alone: lost_M = mean(y_dense - y_pruned). weight_MPD: the
    chosen heads' columns of W_O; lambda = damping times the mean squared norm of its columns.
    """
    flat_MX = weight_MPD.flatten(1).double()
    gram_XX = flat_MX.T @ flat_MX
    gram_XX.diagonal().add_(damping * gram_XX.diagonal().mean() + torch.finfo(torch.float64).tiny)
    return torch.linalg.solve(gram_XX, flat_MX.T @ lost_M.double()).unflatten(0, weight_MPD.shape[1:])
