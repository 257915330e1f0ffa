"""Block by block, the surviving weights fitted to what the dense block gives; no zero is filled.

As in PERP (arXiv 2312.15230) and A Free Lunch in LLM Compression (arXiv 2510.14444).

Letters: B batch, T tokens, M width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.base.progress import progress
from restorelcc.models.architectures import blocks_of, family_of, head_layout, linear_of
from restorelcc.stages.baseline.result import Inputs, Recovered
from restorelcc.training.attached_weights import MaskedChange, apply_change, attached_weights
from restorelcc.training.best import Choice, fit_best
from restorelcc.training.loop import Task

_VALID_SHARE = 10  # one batch in ten chooses the rate


def first_output(output: Any) -> Tensor:
    """A block's hidden state, whether or not it comes in a tuple."""
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def block_outputs(model: PreTrainedModel, batches_BT: list[Tensor]) -> list[list[Tensor]]:
    """What every block gives for every batch, [layer][batch] [B, T, M] in float32 on the CPU."""
    found: list[list[Tensor]] = [[] for _ in blocks_of(model)]

    def keeping(layer: int) -> Any:
        return lambda _module, _inputs, output: found[layer].append(first_output(output).float().cpu())

    handles = [block.register_forward_hook(keeping(layer)) for layer, block in enumerate(blocks_of(model))]
    try:
        for tokens_BT in progress(batches_BT, "dense blocks", "batches"):
            model.base_model(input_ids=tokens_BT, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


class Calls:
    """The arguments that every block gets for every batch, the hidden state apart: the block before gives it."""

    def __init__(self, model: PreTrainedModel, batches_BT: list[Tensor]) -> None:
        self.hidden: list[Tensor] = []  # of the block that is next, one per batch
        self.arguments: list[list[tuple[tuple, dict]]] = [[] for _ in blocks_of(model)]
        with torch.no_grad(), self._observed(model):
            for tokens_BT in batches_BT:
                model.base_model(input_ids=tokens_BT, use_cache=False)

    @contextmanager
    def _observed(self, model: PreTrainedModel) -> Iterator[None]:
        def observing(layer: int) -> Any:
            def hook(_module: nn.Module, arguments: tuple, keywords: dict) -> None:
                hidden, rest = (arguments[0], arguments[1:]) if arguments else (keywords["hidden_states"], ())
                if layer == 0:
                    self.hidden.append(hidden.detach())
                others = {name: value for name, value in keywords.items() if name != "hidden_states"}
                self.arguments[layer].append((rest, others))

            return hook

        blocks = enumerate(blocks_of(model))
        handles = [block.register_forward_pre_hook(observing(layer), with_kwargs=True) for layer, block in blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def output(self, block: nn.Module, layer: int, batch: int) -> Tensor:
        """The block run on a batch."""
        rest, keywords = self.arguments[layer][batch]
        return first_output(block(self.hidden[batch], *rest, **keywords))

    @torch.no_grad()
    def advance(self, block: nn.Module, layer: int) -> None:
        """Replace the hidden states by what the block makes of them."""
        self.hidden = [self.output(block, layer, batch) for batch in range(len(self.hidden))]


def reconstruct(inputs: Inputs) -> Recovered:
    """Every block in turn is trained to give the dense block's output from what the blocks before it, mended, give."""
    config, batches = inputs.config, inputs.training_batches()
    if len(batches) < 2:
        batches = [part for batch in batches for part in batch.split(1)]
    dense = inputs.dense()
    wanted = block_outputs(dense, batches)
    del dense
    model = inputs.pruned()
    calls, paths = Calls(model, batches), family_of(model).linears
    choices: list[Choice] = []
    trained = 0
    valid = list(range(0, len(batches), _VALID_SHARE)) if len(batches) >= _VALID_SHARE else [0]
    train = [number for number in range(len(batches)) if number not in valid]
    for layer, block in enumerate(blocks_of(model)):
        linears = {path: linear_of(block, path) for path in paths}
        change = MaskedChange(linears)
        task = _block_task(calls, block, layer, wanted[layer], train, valid)
        with attached_weights(block, linears, change):
            title, stores = f"reconstruct block {layer}", inputs.states.part(f"block-{layer}")
            single = config.model_copy(update={"batch_size": 1, "accumulate": 1})
            choices.append(fit_best(change, task, single, title=title, stores=stores))
        apply_change(linears, change)
        calls.advance(block, layer)
        trained += sum(int(mask.sum()) for mask in change.masks)
    training = {"blocks": [choice.as_json() for choice in choices]}
    unchanged = all(choice.unchanged for choice in choices)
    return Recovered(head_layout(model), model=model, params_trained=trained, training=training, unchanged=unchanged)


def _block_task(
    calls: Calls, block: nn.Module, layer: int, wanted: list[Tensor], train: list[int], valid: list[int]
) -> Task:
    """|block(x) - dense output|^2 as a share of |dense output|^2; an example is a batch of sequences of one length."""
    energy = sum(float(wanted[batch].square().sum()) for batch in train) / sum(wanted[b][..., 0].numel() for b in train)

    def error(batch: int) -> Tensor:
        found_BTM = calls.output(block, layer, batch).float()
        return (found_BTM - wanted[batch].to(found_BTM.device)).square().sum() / energy

    @torch.no_grad()
    def validate() -> float:
        return sum(float(error(batch)) for batch in valid) / sum(wanted[b][..., 0].numel() for b in valid)

    tokens = [wanted[batch][..., 0].numel() for batch in train]
    return Task(lambda rows: torch.stack([error(train[row]) for row in rows]).sum(), tokens, validate)
