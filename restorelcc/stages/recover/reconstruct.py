"""Block by block, the surviving weights fitted to what the dense block gives; no zero is filled.

As in PERP (arXiv 2312.15230) and A Free Lunch in LLM Compression (arXiv 2510.14444).

Letters: B batch, T tokens, M width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from restorelcc.base.errors import BadInput
from restorelcc.base.progress import progress
from restorelcc.models.architectures import all_blocks, family_of, head_layout, linears_of, numbered_blocks
from restorelcc.models.checkpoints import local_folder
from restorelcc.models.runtime import loss_scale, pick_device, pick_dtype, return_large_buffers
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.models.walk import BlockStep, InMemory, Weights, walk_blocks
from restorelcc.sparsity.streaming import StreamedWeights, can_stream, empty_model
from restorelcc.stages.recover.result import Inputs, Recovered
from restorelcc.training.attached_weights import MaskedChange, apply_change, attached_weights
from restorelcc.training.best import Choice, fit_best
from restorelcc.training.loop import Task

_VALID_SHARE = 10  # one batch in ten chooses the rate


@dataclass(frozen=True)
class Walked:
    """A checkpoint to be walked: a model, and where the weights of its blocks are."""

    model: PreTrainedModel
    weights: Weights


def reconstruct(inputs: Inputs) -> Recovered:
    """Every block in turn is trained to give the dense block's output from what the blocks before it, mended, give.

    Dense and pruned model are walked side by side. In memory are a block of either with the hidden states that reach
    it, and what the dense block makes of its own.
    """
    return_large_buffers()
    config, batches = inputs.config, inputs.training_batches()
    if len(batches) < 2:
        batches = [part for batch in batches for part in batch.split(1)]
    if len(batches) < 2:
        raise BadInput(
            "reconstruct needs at least 2 training pairs, one to train on and one to choose the learning rate by: "
            "raise corpus.train or recover.examples"
        )
    valid = list(range(0, len(batches), _VALID_SHARE)) if len(batches) >= _VALID_SHARE else [0]
    train = [number for number in range(len(batches)) if number not in valid]
    kept = inputs.kept(streamed=True)
    dense, pruned = opened(inputs, "dense"), opened(inputs, "pruned")
    family, with_heads = family_of(pruned.model), dict(numbered_blocks(pruned.model))
    single = config.model_copy(update={"batch_size": 1, "accumulate": 1})
    choices: list[Choice] = []
    trained = 0
    # Strict, so that the pruned model's walk is brought to its end, where the last block is written.
    steps = zip(*(walk_blocks(each.model, batches, each.weights) for each in (dense, pruned)), strict=True)
    for dense_step, step in progress(steps, "reconstruct", "blocks", total=len(all_blocks(pruned.model))):
        layer = step.layer
        if layer not in with_heads:
            continue
        with torch.no_grad():
            wanted = [output_BTM.float() for output_BTM in dense_step.outputs()]
        linears = dict(linears_of(step.block, family))
        change = MaskedChange(linears)
        task = _block_task(step, wanted, train, valid)
        with attached_weights(step.block, linears, change):
            title, stores = f"reconstruct block {layer}", inputs.states.part(f"block-{layer}")
            choices.append(fit_best(change, task, single, title=title, stores=stores))
        if not choices[-1].unchanged:
            apply_change(linears, change)
            kept.write(pruned.model, linears.values())  # the blocks after it see what will be read back
        trained += sum(int(mask.sum()) for mask in change.masks)
        del wanted, task, change
    return Recovered(
        head_layout(pruned.model),
        checkpoint=kept,
        model=pruned.model if isinstance(pruned.weights, InMemory) else None,
        params_trained=trained,
        training={"blocks": [choice.as_json() for choice in choices]},
        unchanged=all(choice.unchanged for choice in choices),
    )


def opened(inputs: Inputs, which: Literal["dense", "pruned"]) -> Walked:
    """One of the two models, streamed where the names of its tensors allow that, and otherwise loaded."""
    folder = getattr(inputs.layout, which)(inputs.cell)
    device = pick_device(inputs.entry.device)
    source = local_folder(folder)
    network, stored = empty_model(source, pick_dtype(inputs.entry.dtype, device)), stored_tensors(source)
    if not can_stream(network, stored):
        return Walked(inputs.dense() if which == "dense" else inputs.pruned(), InMemory())
    return Walked(network, StreamedWeights(network, stored, device))


def _block_task(step: BlockStep, wanted: list[Tensor], train: list[int], valid: list[int]) -> Task:
    """|block(x) - dense output|^2 as a share of |dense output|^2; an example is a batch of sequences of one length."""
    energy = sum(float(wanted[batch].square().sum()) for batch in train) / sum(wanted[b][..., 0].numel() for b in train)

    def error(batch: int) -> Tensor:
        found_BTM = step.output(batch).float()
        return (found_BTM - wanted[batch].to(found_BTM.device)).square().sum() / energy

    @torch.no_grad()
    def validate() -> float:
        return sum(float(error(batch)) for batch in valid) / sum(wanted[b][..., 0].numel() for b in valid)

    tokens = [wanted[batch][..., 0].numel() for batch in train]
    scale = loss_scale(step.block)
    if scale != 1.0:  # in float16: a share of an output with a few huge numbers has gradients that round to zero
        scale *= max(1.0, energy)
    return Task(lambda rows: torch.stack([error(train[row]) for row in rows]).sum(), tokens, validate, scale)
