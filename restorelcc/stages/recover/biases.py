"""Methods that end in biases: random heads, free biases, and the mean shift of the removed weights.

Letters: P chosen heads, D head dim, O output features, I input features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from restorelcc.models.architectures import head_layout
from restorelcc.models.heads import HeadLayout, chosen_count
from restorelcc.models.runtime import give_back_memory
from restorelcc.models.tensors import read_tensors
from restorelcc.stages.recover.result import HEAD_RATIO, Inputs, Recovered
from restorelcc.training.attached import HeadCompensation, SiteBiases, TrainableCompensation, site_linears
from restorelcc.training.closed_form import mean_inputs, mean_output, removed_bias
from restorelcc.training.compensation import fit_compensation
from restorelcc.training.config import SITES, SiteName


def random_heads(heads: HeadLayout, ratio: float, seed: int) -> list[tuple[int, int]]:
    """As many heads as the ratio chooses, drawn without replacement."""
    order = torch.randperm(heads.total, generator=torch.Generator().manual_seed(seed)).tolist()
    return [heads.pair(flat) for flat in order[: chosen_count(ratio, heads, HEAD_RATIO)]]


def random(inputs: Inputs) -> Recovered:
    """RestoreLCC eq. 8 on heads drawn at random."""
    config, model = inputs.config, inputs.pruned()
    heads = head_layout(model)
    chosen = random_heads(heads, config.head_ratio, config.seed)
    directions_LHDD = read_tensors(inputs.layout.components(inputs.cell), ("directions",))[0]["directions"]
    directions_PDD = torch.stack([directions_LHDD[layer, head] for layer, head in chosen])
    initial = HeadCompensation(directions_PDD, chosen, initial_std=config.initial_std, seed=config.seed)
    return trained_compensation(inputs, model, TrainableCompensation(initial))


def free_biases(sites: tuple[SiteName, ...]) -> Callable[[Inputs], Recovered]:
    """A method: a bias of its own, from zero, on every linear of the sites."""

    def method(inputs: Inputs) -> Recovered:
        model = inputs.pruned()
        return trained_compensation(inputs, model, TrainableCompensation(None, SiteBiases(site_linears(model, sites))))

    return method


def trained_compensation(inputs: Inputs, model: PreTrainedModel, initial: TrainableCompensation) -> Recovered:
    """Train a compensation of the model on the pairs."""
    initial = initial.to(model.device)
    title = f"recover {inputs.cell.recovery}"
    pairs = inputs.pairs()
    best = fit_compensation(model, initial, pairs, inputs.config, title=title, stores=inputs.states)
    training = best.choice.as_json() | pairs.as_json()
    return Recovered.by(model, best.compensation, training, unchanged=best.choice.unchanged)


def meanshift(inputs: Inputs) -> Recovered:
    """What the removed weights gave on average, as a bias on the out-projection and the FFN output, as FLAP does.

    Over the dense model's inputs on the calibration tokens; nothing is trained.
    """
    sites: tuple[SiteName, ...] = ("o", "down")
    dense = inputs.dense()
    linears = site_linears(dense, sites)
    means_I = mean_inputs(dense, linears, inputs.calibration(), "mean inputs")
    outputs_O = {name: mean_output(linears[name].weight, linears[name].bias, mean) for name, mean in means_I.items()}
    del dense, linears
    give_back_memory()
    model = inputs.pruned()
    pruned = site_linears(model, sites)
    start = {  # the pruned model may be spread over the devices in another way
        name: removed_bias(outputs_O[name].cpu(), linear.weight.cpu(), linear.bias, means_I[name].cpu())
        for name, linear in pruned.items()
    }
    found = Recovered.by(model, TrainableCompensation(None, SiteBiases(pruned, start)))
    return dataclasses.replace(found, params_trained=0)


def compensated(method: Callable[[Inputs], Recovered]) -> Callable[[Inputs], Recovered]:
    """A method that first recovers by changing weights, then trains a bias on every linear of the result, whose weights
    are rounded as they will be shipped."""

    def both(inputs: Inputs) -> Recovered:
        first = method(inputs.part("weights"))
        model = first.mended(inputs.entry)
        sites = TrainableCompensation(None, SiteBiases(site_linears(model, SITES)))
        second = trained_compensation(inputs, model, sites)
        training = {"weights": first.training, "compensation": second.training}
        trained = first.params_trained + second.params_trained
        unchanged = first.unchanged and second.unchanged
        return dataclasses.replace(
            first,
            compensation=second.compensation,
            params_trained=trained,
            training=training,
            unchanged=unchanged,
            weights_unchanged=first.unchanged,
        )

    return both
