"""From text to token ids, in one way for capture, training and evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from restorelcc.core.errors import BadInput
from restorelcc.core.response_mask import split_pairs


@dataclass(frozen=True)
class EncodedPair:
    """Token ids of question + response in one sequence; the first `question_tokens` belong to the question."""

    ids: list[int]
    question_tokens: int
    truncated: bool


def encode_pair(tokenizer: PreTrainedTokenizerBase, question: str, response: str, max_tokens: int) -> EncodedPair:
    """Tokens of a question and its response, split where the response's characters begin.

    Longer pairs lose tokens from the left of the question (counted by the caller through `truncated`), but none that
    the tokenizer puts before every text. Raises BadInput when the question or the response has no token, or when the
    response alone does not fit.
    """
    (split,) = split_pairs(tokenizer, [question], [response])
    if not split.lead < split.start < len(split.ids):
        raise BadInput(f"question {question[:60]!r} with response {response[:60]!r} leaves one of them without a token")
    excess = max(0, len(split.ids) - max_tokens)
    if excess >= split.start - split.lead:
        raise BadInput(f"response {response[:60]!r} fills all {max_tokens} tokens allowed: raise max_tokens")
    ids = split.ids[: split.lead] + split.ids[split.lead + excess :]
    return EncodedPair(ids, split.start - excess, truncated=excess > 0)


def right_padded(sequences: list[list[int]], pad: int) -> Tensor:
    """Token ids [B, T], padded on the right: under causal attention no real token sees the padding."""
    tokens = max(map(len, sequences))
    return torch.tensor([ids + [pad] * (tokens - len(ids)) for ids in sequences], dtype=torch.long)


def batches_by_length(lengths: list[int], token_budget: int) -> list[list[int]]:
    """Positions in batches of similar length, longest first; rows * longest <= token_budget, but at least one row."""
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    batches: list[list[int]] = []
    for position in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= token_budget:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


def batches_of_equal_length(lengths: list[int], token_budget: int) -> Iterator[list[int]]:
    """Like batches_by_length, but a batch holds one length only, so that nothing is padded."""
    for length in sorted(set(lengths), reverse=True):
        positions = [position for position, other in enumerate(lengths) if other == length]
        rows = max(1, token_budget // length)
        yield from (positions[start : start + rows] for start in range(0, len(positions), rows))


def encode_documents(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], max_tokens: int, minimum: int = 2
) -> list[list[int]]:
    """Token ids of each text, cut to max_tokens; texts under `minimum` tokens are left out."""
    encoded = (tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"] for text in texts)
    return [ids for ids in encoded if len(ids) >= minimum]
