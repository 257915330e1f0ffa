"""Methods that change the weights which pruning left, and no zero: masked fine-tuning, LoRA and distillation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from restorelcc.models.architectures import head_layout
from restorelcc.models.runtime import give_back_memory
from restorelcc.sparsity.kept import KeptCheckpoint
from restorelcc.stages.recover.result import Inputs, Recovered
from restorelcc.training.attached import site_linears
from restorelcc.training.attached_weights import MaskedChange, MaskedLora, apply_change, attached_weights
from restorelcc.training.best import fit_best
from restorelcc.training.checkpointing import checkpointed_blocks
from restorelcc.training.compensation import pairs_task
from restorelcc.training.config import SITES
from restorelcc.training.distillation import dense_targets, distilled_task
from restorelcc.training.loop import Task

_TOP_K = 64  # most probable tokens of the dense model that are kept for each position, the others are one class


def masked(inputs: Inputs) -> Recovered:
    """Every surviving weight is trained."""
    kept, model = inputs.kept(), inputs.pruned()
    linears = site_linears(model, SITES)
    return _trained(inputs, model, kept, linears, MaskedChange(linears))


def masked_lora(inputs: Inputs) -> Recovered:
    """Low-rank changes, multiplied with the mask: what is shipped is a sparse checkpoint of the same pattern."""
    kept, model = inputs.kept(), inputs.pruned()
    linears = site_linears(model, inputs.config.lora_sites)
    return _trained(inputs, model, kept, linears, MaskedLora(linears, inputs.config.rank, inputs.config.seed))


def distilled(method: Callable[[Inputs], Recovered]) -> Callable[[Inputs], Recovered]:
    """A method that first recovers by changing weights; then every surviving weight of the result is trained towards
    the dense model's next-token probabilities at the response tokens, KL(dense || model). Responses are text here, and
    no labels.

    Block reconstruction followed by logit distillation is how LaCo (ACL 2026) recovers a pruned model.
    """

    def both(inputs: Inputs) -> Recovered:
        pairs, dense = inputs.pairs(), inputs.dense()
        targets, valid = (dense_targets(dense, each, pairs.pad, _TOP_K) for each in (pairs.train, pairs.valid))
        del dense
        give_back_memory()
        first = method(inputs.part("weights"))
        assert first.checkpoint is not None
        model = first.mended(inputs.entry)
        linears = site_linears(model, SITES)
        task = distilled_task(model, pairs, targets, 1.0, valid)
        second = _trained(inputs, model, first.checkpoint, linears, MaskedChange(linears), task)
        training = {"weights": first.training, "distillation": second.training}
        return replace(second, training=training, unchanged=first.unchanged and second.unchanged)

    return both


def _trained(
    inputs: Inputs,
    model: PreTrainedModel,
    kept: KeptCheckpoint,
    linears: dict[str, nn.Linear],
    change: MaskedChange | MaskedLora,
    task: Task | None = None,
) -> Recovered:
    """kept: where the new weights are written, which has the model's; task: None for the responses of the pairs."""
    pairs = inputs.pairs()
    title = f"recover {inputs.cell.recovery}"
    with (
        attached_weights(model, linears, change),
        checkpointed_blocks(model, inputs.config.gradient_checkpointing),
    ):
        chosen = pairs_task(model, pairs) if task is None else task
        choice = fit_best(change, chosen, inputs.config, title=title, stores=inputs.states)
    if not choice.unchanged:
        apply_change(linears, change)
        kept.write(model, linears.values())
    training = choice.as_json() | pairs.as_json()
    trained = sum(int(mask.sum()) for mask in change.masks) if isinstance(change, MaskedChange) else None
    trained = trained or sum(part.numel() for part in change.parameters())
    return Recovered(
        head_layout(model),
        checkpoint=kept,
        model=model,
        params_trained=trained,
        training=training,
        unchanged=choice.unchanged,
    )
