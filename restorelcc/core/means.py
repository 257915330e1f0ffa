"""What a model's linears receive on average.

Letters: B batch, T tokens, I input features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.core.progress import progress


@torch.no_grad()
def mean_inputs(
    model: PreTrainedModel, linears: dict[str, nn.Linear], batches_BT: list[Tensor], title: str
) -> dict[str, Tensor]:
    """Mean over all tokens of the batches (nothing in them is padding) of each linear's input, [I] float64."""
    sums: dict[str, Tensor] = {}

    def observing(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            sum_I = inputs[0].flatten(0, -2).double().sum(dim=0)
            sums[name] = sums[name] + sum_I if name in sums else sum_I

        return hook

    handles = [linear.register_forward_pre_hook(observing(name)) for name, linear in linears.items()]
    try:
        for tokens_BT in progress(batches_BT, title, "batches"):
            model.base_model(input_ids=tokens_BT, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    count = sum(tokens_BT.numel() for tokens_BT in batches_BT)
    return {name: sum_I / count for name, sum_I in sums.items()}
