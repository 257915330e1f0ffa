"""The dense model rounded to few bits: what the bytes of a pruned model buy without any pruning.

W ~ s q with q = round(W / s), s = max |W| / (2^(b-1) - 1): of a row for int8, of every 64 inputs of a row for int4.
Round to nearest, symmetric, scales in float16; the linears that pruning targets, all else as it is.

Letters: O output features (rows), I input features, G inputs that share a scale, N groups of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from restorelcc.models.architectures import prunable_linears
from restorelcc.models.placement import at_hand

_SCALE = 2  # bytes


@dataclass(frozen=True)
class Rounding:
    """Bits of a weight, and how many inputs of a row share a scale; None: all of them."""

    bits: int
    group: int | None

    def groups(self, inputs: int) -> int:
        """N."""
        return 1 if self.group is None else -(-inputs // self.group)

    def bytes_of(self, outputs: int, inputs: int) -> int:
        """Of a stored weight [O, I]: rows end at a byte, scales beside them."""
        return outputs * (-(-inputs * self.bits // 8) + _SCALE * self.groups(inputs))


ROUNDINGS = {"int8": Rounding(8, None), "int4": Rounding(4, 64)}


def rounded_weight(weight_OI: Tensor, rounding: Rounding) -> Tensor:
    """s * q in the weight's dtype; a group of zeros stays one."""
    outputs, inputs = weight_OI.shape
    most, groups = 2 ** (rounding.bits - 1) - 1, rounding.groups(inputs)
    size = inputs if rounding.group is None else rounding.group
    filled_OI = torch.nn.functional.pad(weight_OI.float(), (0, groups * size - inputs))
    grouped_ONG = filled_OI.view(outputs, groups, size)
    scale_ON1 = (grouped_ONG.abs().amax(dim=2, keepdim=True) / most).half().float()
    steps_ONG = (grouped_ONG / scale_ON1.clamp_min(1e-30)).round().clamp(-most - 1, most)
    return (steps_ONG * scale_ON1).view(outputs, groups * size)[:, :inputs].to(weight_OI.dtype)


@torch.no_grad()
def round_linears(model: PreTrainedModel, rounding: Rounding) -> None:
    """Round every linear that pruning targets, in place; all of them have to be at hand."""
    for _, _, linear in prunable_linears(model):
        linear.weight.copy_(rounded_weight(linear.weight, rounding))


def rounded_bytes(model: PreTrainedModel, rounding: Rounding, file_bytes: int) -> int:
    """Bytes of a checkpoint of `file_bytes` with its linears rounded."""
    stored = stored_bytes(model, file_bytes)
    shapes = [tuple(linear.weight.shape) for _, _, linear in prunable_linears(model)]
    return file_bytes + sum(rounding.bytes_of(o, i) - o * i * stored for o, i in shapes)


def packed_bytes(model: PreTrainedModel, file_bytes: int) -> int:
    """Bytes of a checkpoint of `file_bytes` without the zeros of its linears (docs/packed.md): one bit for a weight,
    rows filled up to 64 bits, four bytes a row, and what is not zero; a linear that gets no smaller stays."""
    stored, total = stored_bytes(model, file_bytes), file_bytes
    for _, _, linear in prunable_linears(model):
        with at_hand(linear):
            outputs, inputs = linear.weight.shape
            kept = int(torch.count_nonzero(linear.weight))
        packed = outputs * (8 * -(-inputs // 64) + 4) + 4 + kept * stored
        total += min(0, packed - outputs * inputs * stored)
    return total


def stored_bytes(model: PreTrainedModel, file_bytes: int) -> int:
    """Bytes of one stored weight, 1, 2 or 4, by the size of all files."""
    mean = file_bytes / sum(parameter.numel() for parameter in model.parameters())
    return min((1, 2, 4), key=lambda size: abs(size - mean))
