"""Hooks on the out-projections, as `with` blocks that count their handles and always remove them.

Letters: B batch, T tokens, L layers, H heads, D head dim, X = H*D, M model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from restorelcc.models.architectures import blocks_of, out_projections


@contextmanager
def attached_hooks(model: PreTrainedModel, attach: Callable[[int, nn.Linear], RemovableHandle]) -> Iterator[None]:
    """A hook on every out-projection, registered by attach(layer, projection); fails unless there is one per layer."""
    handles: list[RemovableHandle] = []
    try:
        handles.extend(attach(layer, projection) for layer, projection in enumerate(out_projections(model)))
        if len(handles) != len(blocks_of(model)):
            raise RuntimeError(f"{len(handles)} hooks for {len(blocks_of(model))} layers")
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def observed_heads(model: PreTrainedModel, observe: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call observe(layer, z_BTX) with every out-projection's input: the concatenated head outputs z before W_O."""

    def attach(layer: int, projection: nn.Linear) -> RemovableHandle:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            observe(layer, inputs[0])

        return projection.register_forward_pre_hook(hook)

    with attached_hooks(model, attach):
        yield
