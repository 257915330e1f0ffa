"""The pairs to train on: the tables train.parquet and valid.parquet of a corpus, as token ids."""

from __future__ import annotations

import random
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from restorelcc.base.errors import BadInput
from restorelcc.base.tables import EXAMPLES, read_table
from restorelcc.models.checkpoints import context_of, load_tokenizer
from restorelcc.models.text import EncodedPair, encode_pair
from restorelcc.training.compensation import Pairs
from restorelcc.training.config import FitConfig

_NAMED = 20  # tasks that a message lists
TRAIN, VALID = "train.parquet", "valid.parquet"


def read_pairs(corpus: Path, checkpoint: Path, config: FitConfig) -> Pairs:
    """The training pairs that the settings ask for, and the validation pairs of the same task, as the checkpoint reads
    them: in config.max_tokens, or its context where that is shorter.

    A pair whose response has no token, or leaves none to its question, is left out and counted. Raises BadInput when
    none is left, or no pair is of the task.
    """
    tokenizer, longest = load_tokenizer(checkpoint), context_of(checkpoint, config.max_tokens)
    train, train_out = _encoded(corpus / TRAIN, tokenizer, config, config.examples, longest)
    valid, valid_out = _encoded(corpus / VALID, tokenizer, config, None, longest)
    return Pairs(train, valid, tokenizer.pad_token_id or 0, train_out + valid_out)


def _encoded(
    table: Path, tokenizer: PreTrainedTokenizerBase, config: FitConfig, count: int | None, longest: int
) -> tuple[list[EncodedPair], int]:
    rows = _chosen(table, read_table(table, EXAMPLES), config, count)
    pairs, reason = [], "the table is empty"
    for row in rows:
        try:
            pairs.append(encode_pair(tokenizer, row["question"], row["response"], longest))
        except BadInput as error:
            reason = str(error)
    if not pairs:
        raise BadInput(f"{table} holds no pair to train on, {len(rows)} were left out ({reason}): give other pairs")
    return pairs, len(rows) - len(pairs)


def _chosen(table: Path, rows: list[dict], config: FitConfig, count: int | None) -> list[dict]:
    if config.task is not None:
        tasks = sorted({row["task"] for row in rows})
        rows = [row for row in rows if row["task"] == config.task]
        if not rows:
            known = ", ".join(tasks[:_NAMED]) + (f" and {len(tasks) - _NAMED} more" if len(tasks) > _NAMED else "")
            raise BadInput(
                f"{table} has no pair of the task {config.task!r}: known are {known}; correct `task`, or take more "
                "pairs into the corpus (corpus.train, corpus.valid)"
            )
    return rows if count is None or count >= len(rows) else random.Random(config.seed).sample(rows, count)
