"""Methods that change the weights which pruning left, and no zero: masked fine-tuning and masked LoRA."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from restorelcc.models.architectures import head_layout
from restorelcc.stages.recover.result import Inputs, Recovered
from restorelcc.training.attached import site_linears
from restorelcc.training.attached_weights import MaskedChange, MaskedLora, apply_change, attached_weights
from restorelcc.training.best import fit_best
from restorelcc.training.compensation import pairs_task
from restorelcc.training.config import SITES
from restorelcc.training.loop import checkpointed_blocks


def masked(inputs: Inputs) -> Recovered:
    """Every surviving weight is trained."""
    model = inputs.pruned()
    linears = site_linears(model, SITES)
    return _trained(inputs, model, linears, MaskedChange(linears))


def masked_lora(inputs: Inputs) -> Recovered:
    """Low-rank changes, multiplied with the mask: what is shipped is a sparse checkpoint of the same pattern."""
    model = inputs.pruned()
    linears = site_linears(model, inputs.config.lora_sites)
    return _trained(inputs, model, linears, MaskedLora(linears, inputs.config.rank, inputs.config.seed))


def _trained(
    inputs: Inputs, model: PreTrainedModel, linears: dict[str, nn.Linear], change: MaskedChange | MaskedLora
) -> Recovered:
    pairs = inputs.pairs()
    title = f"recover {inputs.cell.recovery}"
    with (
        attached_weights(model, linears, change),
        checkpointed_blocks(model, inputs.config.gradient_checkpointing),
    ):
        choice = fit_best(change, pairs_task(model, pairs), inputs.config, title=title, stores=inputs.states)
    apply_change(linears, change)
    training = choice.as_json() | pairs.as_json()
    trained = sum(int(mask.sum()) for mask in change.masks) if isinstance(change, MaskedChange) else None
    trained = trained or sum(part.numel() for part in change.parameters())
    return Recovered(head_layout(model), model=model, params_trained=trained, training=training,
                     unchanged=choice.unchanged)  # fmt: skip
