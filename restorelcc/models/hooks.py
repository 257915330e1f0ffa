"""Hooks on modules of a model, registered here only and counted: `with` blocks always remove theirs.

Letters: B batch, T tokens, L layers, H heads, D head dim, X = H*D, I input features of a linear, R chosen positions,
M model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.models.architectures import blocks_of, out_projections

K = TypeVar("K")


def hooked(
    modules: Iterable[tuple[K, nn.Module]],
    hook_of: Callable[[K], Callable[..., Any]],
    *,
    expected: int,
    after: bool = False,
    keywords: bool = False,
) -> ExitStack:
    """From now on hook_of(key) runs before each module's forward (after: behind it; keywords: it gets them too), until
    what is returned is closed, as a `with` block does; when nobody keeps that, the hooks stay.

    Raises RuntimeError, with nothing left on the model, when there are not as many modules as expected.
    """
    with ExitStack() as held:
        count = 0
        for key, module in modules:
            register: Any = module.register_forward_hook if after else module.register_forward_pre_hook
            held.callback(register(hook_of(key), with_kwargs=keywords).remove)
            count += 1
        if count != expected:
            raise RuntimeError(f"{count} hooks where {expected} are expected")
        return held.pop_all()


@contextmanager
def observed(
    modules: Iterable[tuple[K, nn.Module]], observe: Callable[[K, Tensor], None], *, expected: int
) -> Iterator[None]:
    """Call observe(key, x) with the input x [..., I] of every call of every module."""

    def hook_of(key: K) -> Callable[..., None]:
        return lambda _module, inputs: observe(key, inputs[0])

    with hooked(modules, hook_of, expected=expected):
        yield


@contextmanager
def added_to_inputs(
    modules: Iterable[tuple[K, nn.Module]], value_of: Callable[[K], Tensor], *, expected: int
) -> Iterator[None]:
    """Every module computes with x + value_of(key), in x's dtype and on its device."""
    with hooked(modules, adding_to_input(value_of), expected=expected):
        yield


def adding_to_input(value_of: Callable[[K], Tensor]) -> Callable[[K], Callable[..., tuple[Any, ...]]]:
    """By key, the hook that adds value_of(key) to a module's input, in its dtype and on its device."""

    def hook_of(key: K) -> Callable[..., tuple[Any, ...]]:
        return lambda _module, inputs: (inputs[0] + value_of(key).to(inputs[0]), *inputs[1:])

    return hook_of


@contextmanager
def observed_heads(model: PreTrainedModel, observe: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call observe(layer, z_BTX) with every out-projection's input: the concatenated head outputs z before W_O."""
    with observed(enumerate(out_projections(model)), observe, expected=len(blocks_of(model))):
        yield


def logits_at(model: PreTrainedModel, chosen_BT: Tensor, **inputs: Any) -> Tensor:
    """Logits [R, V] at the positions where chosen_BT is true, row by row, as the model itself computes them there: a
    large vocabulary's projection costs more than a block, and its output more memory than all else.

    The projection reads the hidden states of these positions alone; what a family does to its logits after it, one by
    one, happens to them as well. `inputs` are the model's own.
    """
    called = []

    def keep(_module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_BTM, *others = arguments
        called.append(True)
        return hidden_BTM[chosen_BT.to(hidden_BTM.device)][None], *others

    with hooked([(None, model.get_output_embeddings())], lambda _key: keep, expected=1):
        logits = model(**{"use_cache": False} | inputs).logits
    return logits[0] if called else logits[chosen_BT.to(logits.device)]
