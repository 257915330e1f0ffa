"""What a model's linears receive: means and Gram matrices.

Letters: B batch, T tokens, N = B*T, I input features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.base.progress import progress


def mean_inputs(
    model: PreTrainedModel, linears: dict[str, nn.Linear], batches_BT: list[Tensor], title: str
) -> dict[str, Tensor]:
    """Mean over all tokens of the batches (nothing in them is padding) of each linear's input, [I] float64."""
    return _means(model, linears, batches_BT, title, lambda x_NI: x_NI.double().sum(dim=0))


def input_grams(
    model: PreTrainedModel, linears: dict[str, nn.Linear], batches_BT: list[Tensor], title: str
) -> dict[str, Tensor]:
    """Mean over all tokens of x x^T for each linear's input x, [I, I] float64."""

    def gram_II(x_NI: Tensor) -> Tensor:
        wide_NI = x_NI.double()
        return wide_NI.T @ wide_NI

    return _means(model, linears, batches_BT, title, gram_II)


@torch.no_grad()
def _means(
    model: PreTrainedModel,
    linears: dict[str, nn.Linear],
    batches_BT: list[Tensor],
    title: str,
    summed: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}

    def observing(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            sum_of = summed(inputs[0].flatten(0, -2))
            sums[name] = sums[name] + sum_of if name in sums else sum_of

        return hook

    handles = [linear.register_forward_pre_hook(observing(name)) for name, linear in linears.items()]
    try:
        for tokens_BT in progress(batches_BT, title, "batches"):
            # The model, not its base model alone: weights that are spread over processes come together from its top.
            model(input_ids=tokens_BT, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    count = sum(tokens_BT.numel() for tokens_BT in batches_BT)
    return {name: sum_of / count for name, sum_of in sums.items()}
