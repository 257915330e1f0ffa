"""What recovering in another way takes, by method: a plan's rows for `grid.recovery`.

Letters: O output features, I input features, of a linear.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from restorelcc.base.recoveries import RECOVERIES
from restorelcc.models.runtime import positions_at_once
from restorelcc.pipeline.plan_costs import (
    COPYING,
    FLOAT32,
    MOVING,
    Cost,
    Shapes,
    Workload,
    compensate_cost,
    evaluate_cost,
)
from restorelcc.stages.recover import RecoverConfig
from restorelcc.training.attached import site_linears
from restorelcc.training.config import SITES

_FLOAT64 = 8
# Numbers in float32 for every weight that is trained under its mask: the change, its gradient and two moments, copies
# of the first, the best and the last, what the mask leaves of it, the weight with it and its gradient, and one more for
# what is made on the way. Measured on SmolLM2: 6.9 GB, of which a compensation of all heads takes 2.1.
_TRAINED = 11
_LOW_RANK = 8  # of them, for every number of an adapter
_CHANGED = 3  # of them, for every weight of which a masked adapter is a change
_WITH_WEIGHTS = 1.5  # a step that has the gradients of weights too, beside one that has not (measured: 1.55)
# Of a block that is reconstructed: the share of its batches that choose the rate, and bytes for every weight that are
# written into new memory, and read or written where they are, in a step and in a pass without gradients.
_VALID = 0.1
_STEP_COPIES, _STEP_MOVES = 24, 66
_PASS_COPIES, _PASS_MOVES = 12, 17
_SPECTRUM = 40  # operations for O * I * min(O, I) of an SVD and for I^3 of an eigendecomposition, in float64


def recovery_cost(
    name: str,
    network: PreTrainedModel,
    shapes: Shapes,
    work: Workload,
    config: RecoverConfig,
    *,
    calibration: int,
    size: int,
    stored: int,
    device: torch.device,
) -> Cost:
    """One method on one pruned model. work: as for `compensate`, with the settings of `recover`; calibration: texts.

    A method that does one thing and then another takes the memory of the larger and the time of both.
    """
    linears = [(linear.out_features, linear.in_features) for linear in site_linears(network, SITES).values()]
    adapted = [
        (linear.out_features, linear.in_features) for linear in site_linears(network, config.lora_sites).values()
    ]
    weights = sum(outputs * inputs for outputs, inputs in linears)
    low_rank = config.rank * sum(outputs + inputs for outputs, inputs in adapted)
    biases = compensate_cost(shapes, work, size, device)

    def with_weights(more: int) -> Cost:
        return replace(biases, memory=biases.memory + more, seconds=_WITH_WEIGHTS * biases.seconds)

    def part(name: str) -> Cost:
        """Of a method that does one thing."""
        match name:
            case "lofit":
                return replace(biases, seconds=2 * biases.seconds)
            case "lora" | "dora":
                return replace(biases, memory=biases.memory + _LOW_RANK * low_rank * FLOAT32)
            case "masked-lora":
                return with_weights((_LOW_RANK * low_rank + _CHANGED * weights) * FLOAT32)
            case "masked":
                return with_weights(_TRAINED * weights * FLOAT32 + weights)
            case "distilled":
                return replace(part("masked"), seconds=part("masked").seconds + _targets_seconds(shapes, work))
            case "reconstruct":
                return _reconstruct_cost(shapes, work, weights, size, device)
            case "meanshift":
                return _calibrated_cost(shapes, calibration, config, size, device)
            case "eora":
                tokens = calibration * config.calibration_tokens
                return _eora_cost(part("meanshift"), adapted, tokens, shapes, size)
        return biases

    first, _, then = name.partition("-")
    steps = [part(first), part(then)] if then in ("compensated", "distilled") else [part(name)]
    ships = RECOVERIES[name].ships
    disk = {"checkpoint": shapes.parameters * stored, "adapter": low_rank * FLOAT32, "biases": biases.disk}[ships]
    return Cost(
        memory=max(step.memory for step in steps),
        host=max(step.host for step in steps),
        disk=disk,
        seconds=sum(step.seconds for step in steps),
    )


def evaluated_cost(name: str, shapes: Shapes, work: Workload, size: int, device: str) -> Cost:
    """An adapter is measured beside the weights, and merged in two ways."""
    return evaluate_cost(shapes, work, size, device, 2 if RECOVERIES[name].ships == "adapter" else 0, timed=2)


def _reconstruct_cost(shapes: Shapes, work: Workload, weights: int, size: int, device: torch.device) -> Cost:
    """A block of the dense and of the pruned model at a time, with what is trained of it, what is outside of the blocks
    of both, and the hidden states of all pairs: what enters both, and what the dense one gives.

    The dense model is walked twice and the pruned one once. A block trains on nine tenths of the pairs, forward, to its
    inputs and to its weights, and is measured on the others. Batches are pairs of one length, and so few tokens that
    what a step does to every weight counts as well: its change under the mask, the gradient, and the optimizer.
    """
    tokens, blocks = work.train * work.tokens, shapes.layers * shapes.block_parameters
    of_block = _TRAINED * FLOAT32 * weights // shapes.layers + 2 * shapes.block_parameters * size
    hidden = 3 * tokens * shapes.width * FLOAT32
    kept = shapes.kept(min(work.longest, work.tokens) * work.train_batch, size)
    trained, valid = work.runs * work.epochs * (1 - _VALID), work.runs * (work.epochs + 1) * _VALID
    batches = min(work.train, work.train / work.train_batch + 1.5 * work.tokens)  # one length's last is hardly full
    seconds = (3 + 3 * trained + valid) * shapes.forward_flops(tokens, work.tokens)
    if device.type == "cpu":
        seconds += batches * weights * trained * (_STEP_COPIES * COPYING + _STEP_MOVES * MOVING)
        seconds += batches * weights * valid * (_PASS_COPIES * COPYING + _PASS_MOVES * MOVING)
    return Cost(memory=of_block + 2 * (shapes.parameters - blocks) * size + hidden + kept, disk=0, seconds=seconds)


def _calibrated_cost(shapes: Shapes, calibration: int, config: RecoverConfig, size: int, device: torch.device) -> Cost:
    """A forward of the dense model over the calibration texts, as long as they may be."""
    length = config.calibration_tokens
    batch = min(4 * length, positions_at_once(device, shapes.vocabulary))
    return Cost(
        memory=shapes.parameters * size + shapes.live(batch, size),
        disk=0,
        seconds=shapes.forward_flops(calibration * length, length),
    )


def _eora_cost(forward: Cost, adapted: list[tuple[int, int]], tokens: int, shapes: Shapes, size: int) -> Cost:
    """Gram matrices in float64 of every linear's inputs beside the weights of both models, and their spectra, twice."""
    grams = sum(inputs**2 for _, inputs in adapted)
    spectra = sum(outputs * inputs * min(outputs, inputs) + 2 * inputs**3 for outputs, inputs in adapted)
    return Cost(
        memory=forward.memory + shapes.parameters * size + grams * _FLOAT64,
        disk=0,
        seconds=forward.seconds + 4 * tokens * grams + _SPECTRUM * spectra,
    )


def _targets_seconds(shapes: Shapes, work: Workload) -> float:
    """The dense model's predictions at the responses, which are half of every pair."""
    tokens = (work.train + work.valid) * work.tokens
    return shapes.forward_flops(tokens, work.tokens, tokens / 2)
