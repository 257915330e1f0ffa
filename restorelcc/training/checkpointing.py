"""Gradient checkpointing of a frozen model that stays in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from restorelcc.models.architectures import all_blocks

# Rates that a block applies itself; Falcon's reads them from its config.
_DROPOUTS = ("dropout", "activation_dropout", "hidden_dropout", "attention_dropout")


@contextmanager
def checkpointed_blocks(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """Inside, blocks forget their activations and compute them again in the backward pass; dropout stays off."""
    if not wanted:
        yield
        return
    blocks = list(all_blocks(model))
    own = [holder for block in blocks for holder in (block, getattr(block, "config", None))]
    rates = [(holder, name, rate) for holder in own for name in _DROPOUTS
             if isinstance(rate := getattr(holder, name, None), float)]  # fmt: skip
    callers = bool(getattr(model, "_require_grads_hooks", None))
    model.disable_input_require_grads()
    model.activation_checkpointing_enable({"use_reentrant": False})
    # With it transformers makes the embedding's output require gradients, for the reentrant way, and never undoes that.
    model.disable_input_require_grads()
    try:
        for holder, name, _ in rates:
            setattr(holder, name, 0.0)
        for block in blocks:
            block.training = True  # of the block alone: its parts, dropouts among them, stay in evaluation mode
        yield
    finally:
        model.activation_checkpointing_disable()
        if callers:
            model.enable_input_require_grads()
        for block in blocks:
            block.training = False
        for holder, name, rate in rates:
            setattr(holder, name, rate)
