"""Capture head outputs z at the tokens that matter, and nothing else.

Letters: N samples, B batch, T tokens, L layers, R roles (question; or question, positive, negative), X = H*D.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from restorelcc.base.errors import StageFailed, first_line
from restorelcc.models.architectures import family_of, head_layout
from restorelcc.models.hooks import observed_heads
from restorelcc.models.packing import (
    LINE,
    PaddingSide,
    Row,
    alone,
    can_pack,
    lines_of,
    model_inputs,
    packed,
    padded,
)
from restorelcc.models.text import EncodedContrast, batches_by_length

# How far activations of the joint pass may be from those of passes of their own, relative to their size, before the
# joint pass is given up: far above rounding, far below what a token that is wrongly seen or hidden does.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Sample:
    """What is read of one sample: z at token `question_end` and at the last of `first`; and at the last of `second`.

    Of the question alone (`second` and `question_end` None): z at the last token of `first`.
    """

    first: list[int]
    question_end: int | None = None
    second: list[int] | None = None

    @property
    def places(self) -> list[int]:
        """Where `first` is read, one place per role."""
        return [*([] if self.question_end is None else [self.question_end]), len(self.first) - 1]

    @cached_property
    def joint(self) -> tuple[Row, list[int]]:
        """One row and the places that are read in it, one per role."""
        if self.second is None:
            return alone(self.first), self.places
        row = packed(self.first, self.second)
        return row, [*self.places, row.second(len(self.second) - 1)]


def question_samples(tuples: Sequence[EncodedContrast]) -> list[Sample]:
    """The last token of each question: what the pruned model is run for."""
    return [Sample(each.question) for each in tuples]


def response_samples(tuples: Sequence[EncodedContrast]) -> list[Sample]:
    """The last tokens of question, question + positive, question + negative: what the dense model is run for."""
    return [Sample(each.positive.ids, each.positive.question_tokens - 1, each.negative.ids) for each in tuples]


@dataclass(frozen=True)
class Batch:
    """Samples that run together: their numbers, line by line, and how many tokens the model sees (without padding)."""

    number: int
    lines: list[list[int]]
    tokens: int

    @property
    def samples(self) -> list[int]:
        """In the order in which they are read."""
        return [sample for line in self.lines for sample in line]


def plan(samples: Sequence[Sample], token_budget: int, *, joint: bool = True) -> list[Batch]:
    """Batches of lines of similar length, longest first; lines * longest <= token_budget. Only where samples may be
    run jointly, short ones share a line."""
    lengths = [len(sample.joint[0].ids) for sample in samples]
    lines = lines_of(lengths, min(LINE, token_budget) if joint else 0)
    sizes = [sum(lengths[sample] for sample in line) for line in lines]
    batches = batches_by_length(sizes, token_budget)
    return [
        Batch(number, [lines[line] for line in batch], sum(sizes[line] for line in batch))
        for number, batch in enumerate(batches)
    ]


class _Seen(Exception):
    """Raised by the last layer's hook: nothing reads the rest of the model."""


class HeadReader:
    """Reads z of batches of samples; what passes over it is only the rows asked for."""

    def __init__(self, model: PreTrainedModel, *, pad: int, side: PaddingSide = "right", joint: bool = True) -> None:
        """joint: run question and both responses as one row, and several rows as one line. False runs a sequence of its
        own per response."""
        self.model, self._pad, self._side, self.joint = model, pad, side, joint
        self._layers = head_layout(model).layers

    def read(self, lines: Sequence[Sequence[Sample]]) -> Tensor:
        """z_LBRX float32 on the CPU. Raises StageFailed when the model gives something that is not a number."""
        samples = [sample for line in lines for sample in line]
        if self.joint:
            joint = [[sample.joint for sample in line] for line in lines]
            rows = [[row for row, _ in line] for line in joint]
            z_LBRX = self._run(rows, [places for line in joint for _, places in line])
        else:
            z_LBRX = self._run([[alone(sample.first)] for sample in samples], [sample.places for sample in samples])
            if seconds := [sample.second for sample in samples if sample.second is not None]:
                of_second = self._run([[alone(ids)] for ids in seconds], [[len(ids) - 1] for ids in seconds])
                z_LBRX = torch.cat([z_LBRX, of_second], dim=2)
        if not z_LBRX.isfinite().all():
            layer = int((~z_LBRX.isfinite()).flatten(1).any(dim=1).nonzero()[0])
            raise StageFailed(
                f"capture: the head outputs of layer {layer} hold NaN or infinity in {self.model.dtype}: set "
                "models.<name>.dtype to float32 or bfloat16, or check the checkpoint"
            )
        return z_LBRX

    @torch.no_grad()
    def _run(self, lines: Sequence[Sequence[Row]], places: list[list[int]]) -> Tensor:
        batch = padded(lines, self._pad, self._side)
        inputs = model_inputs(self.model, batch)
        places_BR = (torch.tensor(places) + batch.start_R[:, None]).to(self.model.device)
        lines_B1 = batch.line_R[:, None].to(self.model.device)
        found: list[Tensor] = []

        def observe(layer: int, z_BTX: Tensor) -> None:
            found.append(z_BTX[lines_B1.to(z_BTX.device), places_BR.to(z_BTX.device)])
            if layer == self._layers - 1:
                raise _Seen

        with observed_heads(self.model, observe), suppress(_Seen):
            self.model.base_model(**inputs)
        return torch.stack([z_BRX.float().cpu() for z_BRX in found])


def joint_pass_error(model: PreTrainedModel, samples: Sequence[Sample], pad: int) -> float:
    """Largest difference of a role's z between one joint line and sequences of their own, relative to its norm."""
    joint, own = (HeadReader(model, pad=pad, joint=joint).read([samples]) for joint in (True, False))
    return float(((joint - own).norm(dim=-1) / own.norm(dim=-1).clamp(min=1e-12)).max())


def why_not_joint(model: PreTrainedModel, samples: Sequence[Sample], pad: int) -> str | None:
    """None when this model may run question and both responses as one row, and rows as one line; otherwise the reason,
    for the user.

    Tried on the longest sample, where windows and position limits show, behind the shortest one.
    """
    if not family_of(model).packs:
        return f"layers of {model.config.model_type!r} models take no mask that keeps sequences of one line apart"
    if not can_pack(model):
        return f"{model.config._attn_implementation} attention accepts no custom mask"
    by_length = sorted(samples, key=lambda sample: len(sample.joint[0].ids))
    try:
        error = joint_pass_error(model, [by_length[0], by_length[-1]], pad)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, RuntimeError) as problem:
        return f"this model cannot run them as one row ({first_line(problem)})"
    if not error <= _TOLERANCE.get(model.dtype, 1e-3):
        return f"run as one row they give activations that differ by {error:.1e}"
    return None


def capture_heads(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    *,
    token_budget: int,
    pad: int,
    side: PaddingSide = "right",
    joint: bool = True,
) -> Tensor:
    """z_LNRX of all samples, in memory; the stages stream the same batches to disk instead."""
    reader = HeadReader(model, pad=pad, side=side, joint=joint)
    batches = list(read_batches(reader, samples, plan(samples, token_budget, joint=joint)))
    order = torch.tensor([number for batch, _ in batches for number in batch.samples])
    return torch.cat([z_LBRX for _, z_LBRX in batches], dim=1)[:, order.argsort()]


def read_batches(
    reader: HeadReader, samples: Sequence[Sample], batches: Sequence[Batch]
) -> Iterator[tuple[Batch, Tensor]]:
    """(batch, z_LBRX) one by one; nothing of a batch is kept."""
    for batch in batches:
        yield batch, reader.read([[samples[number] for number in line] for line in batch.lines])
