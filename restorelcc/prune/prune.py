"""Prune a model in place, block by block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.core.architectures import prunable_linears
from restorelcc.core.errors import StageFailed
from restorelcc.core.progress import progress
from restorelcc.core.pruning import Pruning, Sparsity
from restorelcc.core.sparsity import pruned_count, removal_mask
from restorelcc.prune.scores import magnitude_score, wanda_score
from restorelcc.prune.walk import squared_inputs, walk_blocks


@torch.no_grad()
def prune_model(model: PreTrainedModel, pruning: Pruning, batches_BT: list[Tensor]) -> None:
    """Zero the weights that the pruner finds least important; batches_BT: token ids of calibration, no padding.

    Wanda sees each block's inputs as the already pruned blocks before it produce them. Raises BadInput for weights that
    are not finite or a pattern that does not fit, StageFailed when a row ends with other than the zeros asked for.
    """
    linears: dict[int, dict[str, nn.Linear]] = {}
    for layer, name, linear in prunable_linears(model):
        linears.setdefault(layer, {})[name] = linear
    if pruning.pruner == "magnitude":
        for layer in progress(linears, f"prune {pruning.name}", "blocks"):
            for linear in linears[layer].values():
                _zero(linear, magnitude_score(linear.weight), pruning.sparsity)
    else:
        steps = walk_blocks(model, batches_BT)
        for step in progress(steps, f"prune {pruning.name}", "blocks", total=len(linears)):
            with squared_inputs(linears[step.layer]) as squares_I:
                step.forward()
            for name, linear in linears[step.layer].items():
                _zero(linear, wanda_score(linear.weight, squares_I[name]), pruning.sparsity)
    _check_coverage(linears, pruning)


def _zero(linear: nn.Linear, score_OI: Tensor, sparsity: Sparsity) -> None:
    linear.weight.masked_fill_(removal_mask(score_OI, sparsity), 0)


def _check_coverage(linears: dict[int, dict[str, nn.Linear]], pruning: Pruning) -> None:
    for by_name in linears.values():
        for name, linear in by_name.items():
            wanted = pruned_count(linear.in_features, pruning.sparsity) * linear.out_features
            found = int((linear.weight == 0).sum())
            if found < wanted:
                raise StageFailed(f"{name} has {found} zeros after {pruning.name}, {wanted} were asked for")
