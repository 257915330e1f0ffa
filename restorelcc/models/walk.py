"""Walk a model block by block by replaying its own forward with the arguments it gave to each block.

Letters: B batch, T tokens, M model width, O output features, I input features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.models.architectures import all_blocks, family_of

# What one block received in addition to the hidden state, for one batch.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Weights(Protocol):
    """Where the weights of a model's blocks are while it is walked: all in memory, or streamed from disk."""

    def resident(self, layer: int, block: nn.Module) -> AbstractContextManager[None]:
        """The block's weights are in memory inside the `with`; what was done to them is kept when it ends."""
        ...

    def as_stored(self, name: str, value: Tensor, leaf: str = "weight") -> Tensor:
        """The weight (or bias) of a linear as it will be read back: rounded to the dtype it is stored in."""
        ...

    def for_reading(self) -> Weights:
        """The same weights for a walk that changes none of them."""
        ...


class InMemory:
    """Weights of a model that is loaded whole."""

    def resident(self, layer: int, block: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def as_stored(self, name: str, value: Tensor, leaf: str = "weight") -> Tensor:
        return value

    def for_reading(self) -> Weights:
        return self


@dataclass
class BlockStep:
    """One block with the hidden states that reach it, one [B, T, M] per batch. `layer` is its number among all."""

    layer: int
    block: nn.Module
    hidden_BTM: list[Tensor]
    arguments: list[Arguments]

    @property
    def tokens(self) -> int:
        """Of all batches together."""
        return sum(hidden_BTM[..., 0].numel() for hidden_BTM in self.hidden_BTM)

    def outputs(self) -> Iterator[Tensor]:
        """The outputs [B, T, M] of the block as it now is, batch after batch."""
        for batch in range(len(self.hidden_BTM)):
            yield self.output(batch)

    def output(self, batch: int) -> Tensor:
        """The output [B, T, M] of the block as it now is, for one batch; gradients pass through it."""
        args, kwargs = self.arguments[batch]
        return first_output(self.block(self.hidden_BTM[batch], *args, **kwargs))

    def forward(self) -> None:
        """Run the block so that hooks see it; its outputs are dropped batch by batch."""
        for _ in self.outputs():
            pass


def walk_blocks(
    model: PreTrainedModel, batches_BT: list[Tensor], weights: Weights | None = None
) -> Iterator[BlockStep]:
    """Yield every block in order; changes of its weights by the caller take effect for the following blocks.

    Only one block's hidden states live at a time: each batch's output takes the place of its input.
    """
    weights = weights or InMemory()
    hidden, arguments = _recorded_calls(model, batches_BT)
    last = len(arguments) - 1
    for layer, block in enumerate(all_blocks(model)):
        step = BlockStep(layer, block, hidden, arguments[layer])
        with weights.resident(layer, block):
            yield step  # outside no_grad: a walk that is broken off here would leave gradients off for its caller
            if layer < last:  # nobody reads what the last block makes
                with torch.no_grad():
                    for position, output in enumerate(step.outputs()):
                        hidden[position] = output
        arguments[layer] = []


@torch.no_grad()
def _recorded_calls(model: PreTrainedModel, batches_BT: list[Tensor]) -> tuple[list[Tensor], list[list[Arguments]]]:
    """The first block's hidden states, and every block's other arguments. Blocks do not compute, they pass on."""
    blocks = all_blocks(model)
    arguments: list[list[Arguments]] = [[] for _ in blocks]
    hidden: list[Tensor] = []
    known: list[Tensor] = []
    in_tuple = family_of(model).output_in_tuple

    def stand_in(layer: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden_BTM, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
            if layer == 0:
                hidden.append(hidden_BTM)
            arguments[layer].append(_shared((rest, kwargs), known))
            return (hidden_BTM, None) if in_tuple else hidden_BTM

        return forward

    with forwards_replaced((block, stand_in(layer)) for layer, block in enumerate(blocks)):
        for tokens_BT in batches_BT:
            # use_cache=False: a cache would be an argument that every replay appends to.
            model.base_model(input_ids=tokens_BT, use_cache=False)
    return hidden, arguments


@contextmanager
def forwards_replaced(blocks: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Inside, every block computes with the forward that is given with it."""
    with ExitStack() as stack:
        for block, forward in blocks:
            stack.callback(_give_back, block, block.__dict__.get("forward"))
            block.forward = forward
        yield


def _give_back(block: nn.Module, forward: Any) -> None:
    """The block's own forward again: accelerate's, where it brings the weights in, or else that of its class."""
    del block.forward
    if forward is not None:
        block.forward = forward


def _shared(value: Any, known: list[Tensor]) -> Any:
    """The same value made of tensors already known where they are equal: masks and rotary tables depend on a batch's
    shape only, and a copy of the mask per batch would outgrow the activations."""
    if isinstance(value, Tensor):
        same = (other for other in known if other is value or _equal(other, value))
        found = next(same, None)
        if found is None:
            known.append(found := value)
        return found
    if isinstance(value, tuple):
        return tuple(_shared(part, known) for part in value)
    if isinstance(value, dict):
        return {key: _shared(part, known) for key, part in value.items()}
    return value


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def first_output(output: Any) -> Tensor:
    """A block's hidden state, whether or not it comes in a tuple."""
    return output[0] if isinstance(output, tuple) else output
