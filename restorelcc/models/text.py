"""From text to token ids, in one way for capture, training and evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from restorelcc.base.errors import BadInput
from restorelcc.models.config_facts import context_of_config
from restorelcc.models.response_mask import SplitIds, split_pairs


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
    return encode_pairs(tokenizer, [question], [response], max_tokens)[0]


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, questions: list[str], responses: list[str], max_tokens: int
) -> list[EncodedPair]:
    """`encode_pair` of many pairs, tokenized together."""
    splits = _checked_splits(tokenizer, questions, responses)
    return [
        _cut(split, len(split.ids) - max_tokens, max_tokens, response)
        for split, response in zip(splits, responses, strict=True)
    ]


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
    right = _checked_splits(tokenizer, questions, positives)
    wrong = _checked_splits(tokenizer, questions, negatives)
    tuples = []
    for row, positive, negative in zip(rows, right, wrong, strict=True):
        longer = row["negative" if len(negative.ids) > len(positive.ids) else "positive"]
        excess = max(len(positive.ids), len(negative.ids)) - max_tokens
        # The same for both: a token that stands for the question's end and a response's beginning is in one of them.
        start = _same_start(positive, negative)
        if start <= positive.lead:
            raise BadInput(f"question {row['question'][:60]!r} has no token that is the same with both responses")
        tuples.append(
            EncodedContrast(
                _cut(replace(positive, start=start), excess, max_tokens, longer),
                _cut(replace(negative, start=start), excess, max_tokens, longer),
            )
        )
    return tuples


def _same_start(one: SplitIds, other: SplitIds) -> int:
    """How many of the question's tokens stand before both responses."""
    both = list(zip(one.ids[: one.start], other.ids[: other.start], strict=False))
    return next((number for number, (first, second) in enumerate(both) if first != second), len(both))


def _checked_splits(tokenizer: PreTrainedTokenizerBase, questions: list[str], responses: list[str]) -> list[SplitIds]:
    """`split_pairs`; neither side may be empty."""
    splits = split_pairs(tokenizer, questions, responses)
    for split, question, response in zip(splits, questions, responses, strict=True):
        if not split.lead < split.start < len(split.ids):
            raise BadInput(
                f"question {question[:60]!r} with response {response[:60]!r} leaves one of them without a token"
            )
    return splits


def _cut(split: SplitIds, excess: int, max_tokens: int, response: str) -> EncodedPair:
    """Take `excess` tokens (none when negative) from the left of the question's own; response: what takes the room."""
    if excess >= split.start - split.lead:
        raise BadInput(
            f"response {response[:60]!r} fills all {max_tokens} tokens allowed and leaves its question none: shorten "
            "the response or drop the row, as the stage corpus does by corpus.too_long and corpus.max_tokens"
        )
    excess = max(0, excess)
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


def check_rows(name: str, rows: Sequence[Mapping[str, str]], columns: tuple[str, ...]) -> None:
    """Raises BadInput without rows, or for one that lacks a column."""
    if not rows:
        raise BadInput(f"{name} is empty: give rows with the columns {', '.join(columns)}")
    for number, row in enumerate(rows):
        if lacking := [column for column in columns if not isinstance(row.get(column), str)]:
            raise BadInput(
                f"row {number} of {name} has no text in the column {lacking[0]!r}: give {', '.join(columns)}"
            )


def context_length(config: PreTrainedConfig, max_tokens: int) -> int:
    """How long a sequence may be: max_tokens, or the model's own context where that is shorter. config: a model's, also
    of one that sees images, whose context is that of its text."""
    return min(max_tokens, context_of_config(config) or max_tokens)


def tokens_without_row(tokenizer: PreTrainedTokenizerBase, config: object) -> dict[str, int]:
    """Tokens whose ids are beyond the rows of the model's embedding, with these ids: no model can read them."""
    rows = getattr(config, "vocab_size", None)
    if not rows or len(tokenizer) <= rows:
        return {}
    return {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}


def check_special_tokens(tokenizer: PreTrainedTokenizerBase, config: object, what: str) -> None:
    """Raises BadInput where a token that is put around or between texts, such as [PAD], has no row in the embedding.

    what: the model, as the message names it.
    """
    absent = tokens_without_row(tokenizer, config)
    named = set(map(str, (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)))
    if found := next((token for token in absent if token in named), None):
        raise BadInput(
            f"the tokenizer of {what} has the token {found!r} with the id {absent[found]}, and the embedding has "
            f"{getattr(config, 'vocab_size', 0)} rows: save the model with resized embeddings, or let the tokenizer "
            "use one of its other tokens in its place"
        )


def check_texts(texts: Iterable[str], absent: Mapping[str, int], what: str) -> None:
    """Raises BadInput for a text that holds one of the tokens of `tokens_without_row`. what: where the texts are."""
    for text in texts if absent else ():
        if found := next((token for token in absent if token in text), None):
            raise BadInput(
                f"{what} has a text with {found!r}, a token with the id {absent[found]} for which the embedding has "
                "no row: remove it from the text, or save the model with resized embeddings"
            )


def encode_documents(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], max_tokens: int, minimum: int = 2
) -> list[list[int]]:
    """Token ids of each text, cut to max_tokens; texts under `minimum` tokens are left out."""
    encoded = (tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"] for text in texts)
    return [ids for ids in encoded if len(ids) >= minimum]
