"""Block by block, the surviving weights fitted to what the dense block gives; no zero is filled.

As in PERP (arXiv 2312.15230) and A Free Lunch in LLM Compression (arXiv 2510.14444).

Letters: B batch, T tokens, M width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from restorelcc.base.progress import progress
from restorelcc.models.architectures import blocks_of, family_of, head_layout, linear_of
from restorelcc.models.hooks import hooked
from restorelcc.models.walk import BlockStep, first_output, walk_blocks
from restorelcc.stages.recover.result import Inputs, Recovered
from restorelcc.training.attached_weights import MaskedChange, apply_change, attached_weights
from restorelcc.training.best import Choice, fit_best
from restorelcc.training.loop import Task

_VALID_SHARE = 10  # one batch in ten chooses the rate


@torch.no_grad()
def block_outputs(model: PreTrainedModel, batches_BT: list[Tensor]) -> list[list[Tensor]]:
    """What every block gives for every batch, [layer][batch] [B, T, M] in float32 on the CPU."""
    found: list[list[Tensor]] = [[] for _ in blocks_of(model)]

    def keeping(layer: int) -> Any:
        return lambda _module, _inputs, output: found[layer].append(first_output(output).float().cpu())

    with hooked(enumerate(blocks_of(model)), keeping, expected=len(found), after=True):
        for tokens_BT in progress(batches_BT, "dense blocks", "batches"):
            model.base_model(input_ids=tokens_BT, use_cache=False)
    return found


def reconstruct(inputs: Inputs) -> Recovered:
    """Every block in turn is trained to give the dense block's output from what the blocks before it, mended, give."""
    config, batches = inputs.config, inputs.training_batches()
    if len(batches) < 2:
        batches = [part for batch in batches for part in batch.split(1)]
    dense = inputs.dense()
    wanted = block_outputs(dense, batches)
    del dense
    model = inputs.pruned()
    paths = family_of(model).linears
    choices: list[Choice] = []
    trained = 0
    valid = list(range(0, len(batches), _VALID_SHARE)) if len(batches) >= _VALID_SHARE else [0]
    train = [number for number in range(len(batches)) if number not in valid]
    for step in walk_blocks(model, batches):
        block, layer = step.block, step.layer
        linears = {path: linear_of(block, path) for path in paths}
        change = MaskedChange(linears)
        task = _block_task(step, wanted[layer], train, valid)
        with attached_weights(block, linears, change):
            title, stores = f"reconstruct block {layer}", inputs.states.part(f"block-{layer}")
            single = config.model_copy(update={"batch_size": 1, "accumulate": 1})
            choices.append(fit_best(change, task, single, title=title, stores=stores))
        apply_change(linears, change)
        trained += sum(int(mask.sum()) for mask in change.masks)
    training = {"blocks": [choice.as_json() for choice in choices]}
    unchanged = all(choice.unchanged for choice in choices)
    return Recovered(head_layout(model), model=model, params_trained=trained, training=training, unchanged=unchanged)


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
    return Task(lambda rows: torch.stack([error(train[row]) for row in rows]).sum(), tokens, validate)
