"""Walk a model block by block by replaying its own forward with the arguments it gave to each block.

Letters: B batch, T tokens, M model width, I input features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.core.architectures import blocks_of

# What one block received beside the hidden state, for one batch.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class BlockStep:
    """One block with the hidden states that reach it; `forward` runs it as it now is."""

    layer: int
    block: nn.Module
    hidden_BTM: list[Tensor]
    arguments: list[Arguments]

    def forward(self) -> list[Tensor]:
        """The block's outputs, one [B, T, M] per batch."""
        return [
            _first(self.block(hidden, *args, **kwargs))
            for hidden, (args, kwargs) in zip(self.hidden_BTM, self.arguments, strict=True)
        ]


def walk_blocks(model: PreTrainedModel, batches_BT: list[Tensor]) -> Iterator[BlockStep]:
    """Yield every block in order; what the caller does to its weights is in force for the blocks that follow.

    Only one block's inputs live at a time.
    """
    hidden, arguments = _recorded_calls(model, batches_BT)
    for layer, block in enumerate(blocks_of(model)):
        step = BlockStep(layer, block, hidden, arguments[layer])
        yield step
        with torch.no_grad():
            hidden = step.forward()


@torch.no_grad()
def _recorded_calls(model: PreTrainedModel, batches_BT: list[Tensor]) -> tuple[list[Tensor], list[list[Arguments]]]:
    """The first block's hidden states, and every block's other arguments. Blocks do not compute, they pass on."""
    blocks = blocks_of(model)
    arguments: list[list[Arguments]] = [[] for _ in blocks]
    hidden: list[Tensor] = []

    def stand_in(layer: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            hidden_BTM, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
            if layer == 0:
                hidden.append(hidden_BTM)
            arguments[layer].append((rest, kwargs))
            return hidden_BTM

        return forward

    with ExitStack() as stack:
        for layer, block in enumerate(blocks):
            block.forward = stand_in(layer)
            stack.callback(delattr, block, "forward")
        for tokens_BT in batches_BT:
            # use_cache=False: a cache would be an argument that every replay appends to.
            model.base_model(input_ids=tokens_BT, use_cache=False)
    return hidden, arguments


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def squared_inputs(linears: dict[str, nn.Linear]) -> Iterator[dict[str, Tensor]]:
    """Sum of squares of each input feature over all tokens seen inside the block, [I] float64 per linear."""
    sums = {
        name: torch.zeros(linear.in_features, dtype=torch.float64, device=linear.weight.device)
        for name, linear in linears.items()
    }

    def observe(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            sums[name] += inputs[0].reshape(-1, inputs[0].shape[-1]).double().square().sum(dim=0)

        return hook

    handles = [linear.register_forward_pre_hook(observe(name)) for name, linear in linears.items()]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()
