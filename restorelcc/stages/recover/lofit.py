"""LoFiT (arXiv 2406.01563): choose heads by the scales they learn, then train an offset on those.

Letters: L layers, H heads, D head dim, P chosen heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from restorelcc.models.architectures import head_layout
from restorelcc.models.heads import HeadLayout, chosen_count
from restorelcc.stages.recover.biases import trained_compensation
from restorelcc.stages.recover.result import HEAD_RATIO, Inputs, Recovered
from restorelcc.training.attached import HeadCompensation, TrainableCompensation, site_linears
from restorelcc.training.attached_weights import HeadScales, attached_weights
from restorelcc.training.best import fit_best
from restorelcc.training.checkpointing import checkpointed_blocks
from restorelcc.training.compensation import pairs_task
from restorelcc.training.loop import Task


def strongest_heads(score_LH: Tensor, layout: HeadLayout, ratio: float) -> list[tuple[int, int]]:
    """The heads with the highest scores, best first; of equal ones the first."""
    scores = score_LH.flatten().tolist()
    order = sorted(range(len(scores)), key=lambda flat: (-scores[flat], flat))
    return [layout.pair(flat) for flat in order[: chosen_count(ratio, layout, HEAD_RATIO)]]


def lofit(inputs: Inputs) -> Recovered:
    """Step 1: scales of all heads, with an L1 penalty; step 2: offsets of the heads whose scales grew most."""
    config, model = inputs.config, inputs.pruned()
    heads, pairs = head_layout(model), inputs.pairs()
    chosen_count(config.head_ratio, heads, HEAD_RATIO)  # refused before the first step trains
    linears = site_linears(model, ("o",))
    scales = HeadScales(linears, config.initial_std, config.seed).to(model.device)
    plain = pairs_task(model, pairs)

    def penalized(rows: list[int]) -> Tensor:
        tokens = sum(plain.tokens[row] for row in rows)
        return plain.summed_loss(rows) + tokens * config.lofit_l1 * scales.scale_LX.abs().sum()

    with attached_weights(model, linears, scales), checkpointed_blocks(model, config.gradient_checkpointing):
        task = Task(penalized, plain.tokens, plain.validate, plain.loss_scale, plain.parts)
        title, stores = "recover lofit, heads", inputs.states.part("heads")
        # They choose heads and are then forgotten: the best there are, whatever they are worth themselves.
        choice = fit_best(scales, task, config, title=title, may_stay=False, stores=stores)
    chosen = strongest_heads(scales.score_LH(heads), heads, config.head_ratio)
    no_directions_PDD = torch.eye(heads.head_dim).expand(len(chosen), -1, -1)
    offsets = HeadCompensation(
        no_directions_PDD, chosen, initial_std=config.initial_std, seed=config.seed, trained=("bias",)
    )
    result = trained_compensation(inputs, model, TrainableCompensation(offsets))
    result.training["heads"] = {"heads": chosen} | choice.as_json()
    return result
