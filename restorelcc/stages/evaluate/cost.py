"""The cost of a model: parameters, file size, memory, and the time of a forward pass against the pruned model's."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.base.weights import weight_files
from restorelcc.compensation.compensation import Compensation
from restorelcc.compensation.fold import bias_additions
from restorelcc.models.architectures import prunable_linears
from restorelcc.models.placement import at_hand

_ROUNDS = 15
_SECONDS = 2.0  # of rounds, at most; but at least three

Biases = list[nn.Parameter | None]


def parameter_counts(model: PreTrainedModel) -> dict[str, int]:
    """All parameters, those that are not zero, and none added."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    nonzero = 0
    for name in sizes:
        with at_hand(model.get_submodule(name.rpartition(".")[0])):
            nonzero += int(torch.count_nonzero(model.get_parameter(name)))
    return {"params_total": sum(sizes.values()), "params_nonzero": nonzero, "params_added": 0}


def folded_parameters(model: PreTrainedModel, compensation: Compensation | Tensor) -> int:
    """Bias entries that the fold adds: one per output of every compensated linear that has no bias yet."""
    if isinstance(compensation, Tensor):
        compensation = Compensation(compensation)
    additions = bias_additions(model, compensation)
    return sum(linear.out_features for _, linear, _ in additions if linear.bias is None)


def sparsity_of(model: PreTrainedModel) -> float:
    """Share of exact zeros in the linear weights that pruning targets."""
    zeros = total = 0
    for _, _, linear in prunable_linears(model):
        with at_hand(linear):
            zeros += int((linear.weight == 0).sum())
            total += linear.weight.numel()
    return zeros / total


def file_bytes(checkpoint: Path) -> int:
    """Bytes of a checkpoint's weight files; what is added to them is counted by the caller."""
    return sum(path.stat().st_size for path in weight_files(checkpoint))


def peak_memory_bytes(model: PreTrainedModel) -> int:
    """The most memory that was in use so far: of the GPUs that the model is on, or else of this process."""
    gpus = {part.device for part in model.parameters() if part.device.type == "cuda"}
    if gpus:
        return sum(int(torch.cuda.max_memory_allocated(device)) for device in gpus)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def linear_biases(model: PreTrainedModel) -> Biases:
    """The bias of every linear that pruning or restoring touches, to put back with `set_biases`."""
    return [linear.bias for _, _, linear in prunable_linears(model)]


def set_biases(model: PreTrainedModel, biases: Biases) -> None:
    """Put biases from `linear_biases` into the model; the same tensors, nothing is copied."""
    for (_, _, linear), bias in zip(prunable_linears(model), biases, strict=True):
        linear.register_parameter("bias", bias)


@torch.no_grad()
def forward_seconds(model: PreTrainedModel, tokens_BT: Tensor, settings: list[Callable[[], None]]) -> list[list[float]]:
    """Seconds of a forward pass in each setting, measured in turn, so that all of them see the same machine."""
    found: list[list[float]] = [[] for _ in settings]
    begin = time.perf_counter()
    for number in range(-1, _ROUNDS):
        if number >= 3 and time.perf_counter() - begin > _SECONDS:
            break
        for setting, seconds in zip(settings, found, strict=True):
            setting()
            _wait(model)
            started = time.perf_counter()
            model(input_ids=tokens_BT, use_cache=False)
            _wait(model)
            if number >= 0:  # the first round warms up
                seconds.append(time.perf_counter() - started)
    return found


def _wait(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def latency(model: PreTrainedModel, tokens_BT: Tensor, before: Biases | None = None) -> dict[str, Any]:
    """Median seconds of a forward pass; given the biases of before restoring, also the ratio restored / pruned.

    Both have the same weights and differ in the biases; they are measured in turn in this process.
    """
    shape = {"batch": tokens_BT.shape[0], "tokens": tokens_BT.shape[1]}
    if before is None:
        (seconds,) = forward_seconds(model, tokens_BT, [lambda: None])
        return {"seconds": statistics.median(seconds), "rounds": len(seconds)} | shape
    after = linear_biases(model)
    pruned, restored = forward_seconds(
        model, tokens_BT, [lambda: set_biases(model, before), lambda: set_biases(model, after)]
    )
    set_biases(model, after)
    ratios = [b / a for a, b in zip(pruned, restored, strict=True)]
    return {
        "seconds": statistics.median(restored),
        "pruned_seconds": statistics.median(pruned),
        "ratio": statistics.median(ratios),
        "rounds": len(ratios),
    } | shape
