"""The learned compensation of chosen heads, attached to a frozen model as a bias of its out-projections.

Letters: P chosen heads, L layers, H heads, D head dim, M model width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.core.architectures import out_projections
from restorelcc.core.fold import folded_bias
from restorelcc.core.heads import HeadLayout


class HeadCompensation(nn.Module):
    """c_p = sum_{i<=D} beta_pi v_pi + b_p for each chosen head p. RestoreLCC eq. 8.

    directions_PDD [P, D, D] (rows v_i) stay fixed; beta and bias [P, D] train, in float32 whatever the model's dtype.
    """

    directions_PDD: Tensor

    def __init__(self, directions_PDD: Tensor, heads: list[tuple[int, int]], *, initial_std: float, seed: int) -> None:
        super().__init__()
        self.heads = heads
        shape = directions_PDD.shape[:2]
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("directions_PDD", directions_PDD.float())
        self.beta = nn.Parameter(initial_std * torch.randn(shape, generator=generator))
        self.bias = nn.Parameter(initial_std * torch.randn(shape, generator=generator))

    def offset_PD(self) -> Tensor:
        """c of the chosen heads, [P, D]."""
        return torch.einsum("pi,pid->pd", self.beta, self.directions_PDD) + self.bias

    def offset_LHD(self, layout: HeadLayout) -> Tensor:
        """c of all heads, [L, H, D]; zero for those not chosen."""
        offset = torch.zeros(layout.total, layout.head_dim, device=self.bias.device)
        flat = torch.tensor([layout.flat(*head) for head in self.heads], device=self.bias.device)
        return offset.index_copy(0, flat, self.offset_PD()).unflatten(0, (layout.layers, layout.heads))


@contextmanager
def attached(model: PreTrainedModel, compensation: HeadCompensation, layout: HeadLayout) -> Iterator[None]:
    """out' = out + W_O c: the folded form of z' = z + c, so that a step costs no more than a bias would.

    Only layers with a chosen head get a hook; below the lowest of them nothing requires a gradient.
    """
    projections = out_projections(model)
    layers = sorted({layer for layer, _ in compensation.heads})

    def hook(layer: int) -> Any:
        def add_bias(projection: nn.Linear, _inputs: Any, output_BTM: Tensor) -> Tensor:
            offset_X = layout.join(compensation.offset_LHD(layout)[layer]).to(projection.weight.device)
            return output_BTM + folded_bias(projection.weight, offset_X).to(output_BTM)

        return add_bias

    handles = [projections[layer].register_forward_hook(hook(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
