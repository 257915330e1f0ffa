"""Train a compensation on question/response pairs, with the learning rate that is best on the validation pairs."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from restorelcc.models.runtime import loss_scale
from restorelcc.models.text import EncodedPair
from restorelcc.training.attached import TrainableCompensation, attached
from restorelcc.training.best import Choice, Start, fit_best
from restorelcc.training.checkpointing import checkpointed_blocks
from restorelcc.training.config import FitConfig
from restorelcc.training.loop import Stores, Task
from restorelcc.training.losses import (
    mean_loss,
    packed_batch,
    parts_of_batch,
    response_loss,
    response_tokens,
)
from restorelcc.training.lower_blocks import kept_below, lowest_trained


@dataclass(frozen=True)
class Pairs:
    """Training and validation pairs as token ids, the id that pads them, and how many were left out."""

    train: list[EncodedPair]
    valid: list[EncodedPair]
    pad: int
    left_out: int = 0

    def as_json(self) -> dict[str, int]:
        truncated = sum(pair.truncated for pair in self.train)
        counts = {"train_pairs": len(self.train), "valid_pairs": len(self.valid)}
        return counts | {"truncated": truncated, "left_out": self.left_out}


@dataclass(frozen=True)
class Best:
    """The chosen compensation (zero for no change), and the other candidates."""

    compensation: TrainableCompensation
    choice: Choice


def pairs_task(model: PreTrainedModel, pairs: Pairs) -> Task:
    """-log P(response | question) of the pairs under the model as it is at each call."""
    lengths = [len(pair.ids) for pair in pairs.train]

    def summed_loss(rows: list[int]) -> Tensor:
        batch = packed_batch(model, [pairs.train[row] for row in rows], pairs.pad)
        return response_loss(model, batch.tokens_BT, batch.labels_BT, **batch.inputs)

    return Task(
        summed_loss,
        [response_tokens(pair) for pair in pairs.train],
        lambda: mean_loss(model, pairs.valid, pairs.pad),
        loss_scale(model),
        lambda rows: parts_of_batch(model, lengths, rows),
    )


def fit_compensation(
    model: PreTrainedModel,
    initial: TrainableCompensation,
    pairs: Pairs,
    config: FitConfig,
    *,
    title: str,
    stores: Stores | None = None,
    task: Task | None = None,
    guess: bool = False,
) -> Best:
    """Train a copy of `initial` with every learning rate; the lowest validation loss decides, and the model without any
    compensation is among the candidates. The model stays as it is.

    task: what is trained on, when it is not the pairs' own responses; guess: `initial` is a candidate too. Where
    nothing beats the model as it is, the offsets of the heads are zero and there are no sites.
    """
    trained = copy.deepcopy(initial)
    start: Start = "guess" if guess else "random"
    if not any(bool(part.any()) for part in trained.parameters()):
        start = "unchanged"
    sequences = [pair.ids for pair in (*pairs.train, *pairs.valid)]
    with (
        attached(model, trained),
        kept_below(model, lowest_trained(model, trained), sequences, title),
        checkpointed_blocks(model, config.gradient_checkpointing),
    ):
        chosen = pairs_task(model, pairs) if task is None else task
        choice = fit_best(trained, chosen, config, title=title, start=start, stores=stores)
    if choice.unchanged:
        trained.sites = None  # a bias of zero adds parameters to a checkpoint and nothing else
    return Best(trained, choice)
