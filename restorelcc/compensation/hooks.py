"""A compensation at work in a model whose tensors stay as they are: the reference that folding is proved against.

Letters: B batch, T tokens, L layers, H heads, D head dim, X = H*D, O output features of a linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from restorelcc.base.errors import BadInput
from restorelcc.compensation.compensation import Compensation, check_width, checked
from restorelcc.models.architectures import blocks_of, family_of, head_layout, linear_of
from restorelcc.models.hooks import attached_hooks


@contextmanager
def offset_heads(model: PreTrainedModel, offset_LHD: Tensor) -> Iterator[None]:
    """z' = z + c at every position of every head (RestoreLCC eq. 5 and 8): the reference the fold is proved against.

    offset_LHD [L, H, D], any float dtype, added in the model's own. Raises BadInput when the shape is another model's.
    """
    layout = head_layout(model)
    if tuple(offset_LHD.shape) != (layout.layers, layout.heads, layout.head_dim):
        raise BadInput(f"a compensation of shape {tuple(offset_LHD.shape)} does not fit a model of {layout}")
    offset_LX = layout.join(offset_LHD)

    def attach(layer: int, projection: nn.Linear) -> RemovableHandle:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (inputs[0] + offset_LX[layer].to(inputs[0]), *inputs[1:])

        return projection.register_forward_pre_hook(hook)

    with attached_hooks(model, attach):
        yield


@contextmanager
def compensated(model: PreTrainedModel, compensation: Compensation | Tensor) -> Iterator[None]:
    """z' = z + c for the heads and out' = out + s for the further sites: the reference that folding is proved against.

    No tensor of the model changes. Raises BadInput when the compensation does not fit the model.
    """
    found = checked(compensation, family_of(model), head_layout(model))
    blocks = blocks_of(model)
    linears = {site: linear_of(blocks[site.layer], site.linear) for site in found.sites}
    for site, linear in linears.items():
        check_width(site, found.sites[site], linear.out_features)

    def adding(value_O: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        return lambda _module, _inputs, output: output + value_O.to(output)

    with offset_heads(model, found.offset_LHD):
        handles = [linear.register_forward_hook(adding(found.sites[site])) for site, linear in linears.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
