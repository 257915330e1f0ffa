"""The pairs to train on: the tables train.parquet and valid.parquet of a corpus, as token ids."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from restorelcc.core.errors import BadInput
from restorelcc.core.fit_compensation import Pairs
from restorelcc.core.text import EncodedPair, encode_pair
from restorelcc.io.corpus_tables import EXAMPLES
from restorelcc.io.tables import read_table

TRAIN, VALID = "train.parquet", "valid.parquet"


def read_pairs(corpus: Path, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Pairs:
    """Training and validation pairs. A pair whose response has no token, or leaves none of max_tokens to its question,
    is left out and counted. Raises BadInput when none is left."""
    train, train_out = _encoded(corpus / TRAIN, tokenizer, max_tokens)
    valid, valid_out = _encoded(corpus / VALID, tokenizer, max_tokens)
    return Pairs(train, valid, tokenizer.pad_token_id or 0, train_out + valid_out)


def _encoded(table: Path, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> tuple[list[EncodedPair], int]:
    rows = read_table(table, EXAMPLES)
    pairs, reason = [], "the table is empty"
    for row in rows:
        try:
            pairs.append(encode_pair(tokenizer, row["question"], row["response"], max_tokens))
        except BadInput as error:
            reason = str(error)
    if not pairs:
        raise BadInput(f"{table} holds no pair to train on, {len(rows)} were left out ({reason}): give other pairs")
    return pairs, len(rows) - len(pairs)
