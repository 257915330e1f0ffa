"""Versions of a model that take turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.base.progress import progress
from restorelcc.models.architectures import prunable_linears
from restorelcc.stages.speed import SpeedConfig

INT8 = "_weight_int8pack_mm"  # torch's product of 16-bit inputs and an 8-bit weight, on the CPU


@dataclass
class Version:
    """One of the models that take turns, and its seconds per token by turn. file: bytes of its weight files."""

    name: str
    model: PreTrainedModel
    file: int | None
    decode: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)

    @property
    def memory(self) -> int:
        """Bytes of parameters and buffers; a tensor that is there under two names counts once."""
        held = {each.data_ptr(): each.nbytes for each in (*self.model.parameters(), *self.model.buffers())}
        return sum(held.values())


class Int8Linear(nn.Module):
    """y = x W^T + b with W as round(W / s), s = max |row| / 127 (round to nearest, one scale a row), and x in bfloat16.

    weight [O, I] int8, scale [O] bfloat16.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_OI = linear.weight.float()
        scale_O = weight_OI.abs().amax(dim=1).clamp_min(1e-9) / 127
        self.register_buffer("weight", (weight_OI / scale_O[:, None]).round().to(torch.int8).contiguous())
        self.register_buffer("scale", scale_O.to(torch.bfloat16))
        self.register_parameter("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        y = getattr(torch, INT8)(flat, self.weight, self.scale).to(x.dtype)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)


def with_linears(model: PreTrainedModel, kind: type[nn.Module]) -> PreTrainedModel:
    """The model with every linear that pruning targets replaced by `kind(linear)`, in place."""
    linears = [linear for *_, linear in prunable_linears(model)]  # first: it puts linears in place of Conv1D
    names = {module: name for name, module in model.named_modules()}
    for linear in linears:
        model.set_submodule(names[linear], kind(linear))
    return model


def take_turns(versions: list[Version], config: SpeedConfig, vocabulary: int) -> None:
    """Measure: every turn goes once through all versions, forwards and backwards by turns. The first one warms up."""
    generator = torch.Generator().manual_seed(config.seed)
    tokens_T = torch.randint(vocabulary, (config.prompt + config.new_tokens + config.prefill,), generator=generator)
    for turn in progress(range(config.turns + 1), "speed", "turns", total=config.turns + 1):
        for version in versions if turn % 2 else reversed(versions):
            decode, prefill = _turn(version.model, tokens_T, config, prefill=turn <= config.prefill_turns)
            if turn > 0:
                version.decode.append(decode)
                version.prefill += [] if prefill is None else [prefill]


@torch.no_grad()
def _turn(
    model: PreTrainedModel, tokens_T: Tensor, config: SpeedConfig, *, prefill: bool
) -> tuple[float, float | None]:
    """Seconds per token: median of those decoded one by one behind a prompt, and of a longer prompt."""
    own_BT = tokens_T[None].to(model.device)
    cache = model(input_ids=own_BT[:, : config.prompt], use_cache=True).past_key_values
    times = []
    for number in range(config.prompt, config.prompt + config.new_tokens):
        started = _now(model)
        model(input_ids=own_BT[:, number : number + 1], past_key_values=cache, use_cache=True)
        times.append(_now(model) - started)
    if not prefill:
        return median(times), None
    started = _now(model)
    model(input_ids=own_BT[:, -config.prefill :], use_cache=False, logits_to_keep=1)
    return median(times), (_now(model) - started) / config.prefill


def _now(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def measured(version: Version, dense: Version) -> dict[str, Any]:
    """Bytes, tokens per second, and how many times as fast as the dense model, by turn: quartiles."""
    return {
        "file_bytes": version.file,
        "memory_bytes": version.memory,
        "decode": _speed(version.decode, dense.decode),
        "prefill": _speed(version.prefill, dense.prefill),
    }


def _speed(own: list[float], dense: list[float]) -> dict[str, Any]:
    ratios = [one / two for one, two in zip(dense, own, strict=True)]
    return {"tokens_per_second": 1 / median(own), "times_dense": quantiles(ratios, n=4), "turns": len(own)}
