"""Calibration sequences for pruning."""

from __future__ import annotations

import random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from restorelcc.base.errors import BadInput
from restorelcc.models.text import batches_of_equal_length
from restorelcc.stages.prune import PruneConfig


def calibration_batches(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    config: PruneConfig,
    device: torch.device,
    *,
    short: bool = False,
) -> list[Tensor]:
    """Up to `samples` texts, each as one sequence (a random crop when longer than sequence_length), batched unpadded.

    Raises BadInput when no text has two tokens, or those drawn are together shorter than one sequence; the latter is as
    it should be (`short`) for the embedded world, whose documents are a dozen words.
    """
    rng = random.Random(config.seed)
    sequences: list[list[int]] = []
    available = 0
    for text in rng.sample(texts, len(texts)):
        ids = tokenizer(text)["input_ids"]
        if len(ids) < 2:
            continue
        available += len(ids)
        start = rng.randrange(max(1, len(ids) - config.sequence_length + 1))
        sequences.append(ids[start : start + config.sequence_length])
        if len(sequences) == config.samples:
            break
    if not sequences:
        raise BadInput("the calibration texts hold no sequence of two tokens: give longer texts")
    if available < config.sequence_length and not short:
        raise BadInput(
            f"the calibration texts hold {available} tokens, less than one sequence of prune.sequence_length "
            f"{config.sequence_length}, where {len(sequences)} are drawn: give longer texts "
            "(models.<name>.data.calibration), raise prune.samples and corpus.calibration, or lower the length"
        )
    groups = batches_of_equal_length([len(ids) for ids in sequences], config.token_budget)
    return [torch.tensor([sequences[position] for position in group], device=device) for group in groups]
