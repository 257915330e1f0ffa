"""From text to token ids, in one way for capture, training and evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from restorelcc.core.errors import BadInput


@dataclass(frozen=True)
class EncodedPair:
    """Token ids of question + response in one sequence; the first `question_tokens` belong to the question."""

    ids: list[int]
    question_tokens: int
    truncated: bool


def join_pair(question: str, response: str) -> str:
    """Question and response as one text, parted by the space lm-eval puts there (`target_delimiter`)."""
    return question + response if question[-1:].isspace() else f"{question} {response}"


def encode_pair(tokenizer: PreTrainedTokenizerBase, question: str, response: str, max_tokens: int) -> EncodedPair:
    """Tokens of a question and its response, split where lm-eval splits them: after len(tokens(question)).

    Longer pairs lose tokens from the left of the question (counted by the caller through `truncated`). Raises BadInput
    when the question or the response has no token, or the response alone does not fit.
    """
    return encode_pairs(tokenizer, [question], [response], max_tokens)[0]


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, questions: list[str], responses: list[str], max_tokens: int
) -> list[EncodedPair]:
    """`encode_pair` of many pairs, tokenized together."""
    whole, starts = _split_pairs(tokenizer, questions, responses)
    found = zip(whole, starts, responses, strict=True)
    return [_cut(ids, start, len(ids) - max_tokens, max_tokens, response) for ids, start, response in found]


@dataclass(frozen=True)
class EncodedContrast:
    """A question with its positive and its negative response. A question too long for the longer of the two loses the
    same tokens beside both, so that what is read of the question does not depend on the response."""

    positive: EncodedPair
    negative: EncodedPair

    @property
    def question(self) -> list[int]:
        """The question's tokens, as they stand before the positive response."""
        return self.positive.ids[: self.positive.question_tokens]

    @property
    def truncated(self) -> bool:
        return self.positive.truncated


def encode_contrasts(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, str]], max_tokens: int
) -> list[EncodedContrast]:
    """Tokens of contrast tuples (columns question, positive, negative). Raises BadInput like encode_pair."""
    questions = [row["question"] for row in rows]
    positives, negatives = ([row[side] for row in rows] for side in ("positive", "negative"))
    whole, starts = _split_pairs(tokenizer, questions, positives)
    others, _ = _split_pairs(tokenizer, questions, negatives)
    tuples = []
    for row, positive, negative, start in zip(rows, whole, others, starts, strict=True):
        excess = max(len(positive), len(negative)) - max_tokens
        tuples.append(
            EncodedContrast(
                _cut(positive, start, excess, max_tokens, row["positive"]),
                _cut(negative, start, excess, max_tokens, row["negative"]),
            )
        )
    return tuples


def _split_pairs(
    tokenizer: PreTrainedTokenizerBase, questions: list[str], responses: list[str]
) -> tuple[list[list[int]], list[int]]:
    """Tokens of question + response, and how many of them are the question's; neither side may be empty."""
    whole = tokenizer([join_pair(*pair) for pair in zip(questions, responses, strict=True)])["input_ids"]
    starts = [len(ids) for ids in tokenizer([question.rstrip() for question in questions])["input_ids"]]
    for ids, start, question, response in zip(whole, starts, questions, responses, strict=True):
        if not 0 < start < len(ids):
            raise BadInput(
                f"question {question[:60]!r} with response {response[:60]!r} leaves one of them without a token"
            )
    return whole, starts


def _cut(ids: list[int], start: int, excess: int, max_tokens: int, response: str) -> EncodedPair:
    """Take `excess` tokens (none when negative) from the left of the question, which has `start` of them."""
    if excess >= start:
        raise BadInput(f"response {response[:60]!r} fills all {max_tokens} tokens allowed: raise max_tokens")
    excess = max(0, excess)
    return EncodedPair(ids[excess:], start - excess, truncated=excess > 0)


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


def context_length(config: object, max_tokens: int) -> int:
    """How long a sequence may be: max_tokens, or the model's own context where that is shorter."""
    return min(max_tokens, getattr(config, "max_position_embeddings", None) or max_tokens)


def encode_documents(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], max_tokens: int, minimum: int = 2
) -> list[list[int]]:
    """Token ids of each text, cut to max_tokens; texts under `minimum` tokens are left out."""
    encoded = (tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"] for text in texts)
    return [ids for ids in encoded if len(ids) >= minimum]
