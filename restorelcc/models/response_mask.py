"""Where a response begins among the tokens of question + response, for any tokenizer.

The text says where the response begins; a fast tokenizer says which characters each token stands for. No count of
special tokens, and no token of any vocabulary, is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

# Stands before a question that a chat template has made: it brings its special tokens itself, and the response follows
# it with nothing between. (ASCII's own "start of text"; tokenizers never see it.)
RENDERED = "\x02"


@dataclass(frozen=True)
class SplitIds:
    """Token ids of question + response: the first `start` are the question's, `lead` of those stand for no text."""

    ids: list[int]
    start: int
    lead: int  # special tokens that the tokenizer puts before every text


def join_pair(question: str, response: str) -> str:
    """Question and response as one text, parted by the space lm-eval puts there (`target_delimiter`)."""
    if question.startswith(RENDERED):
        return question.removeprefix(RENDERED) + response
    return question + response if question[-1:].isspace() else f"{question} {response}"


def _question_text(question: str) -> str:
    """The question's own characters: as lm-eval has it, the blank before a response belongs to the response."""
    return question.removeprefix(RENDERED) if question.startswith(RENDERED) else question.rstrip()


def split_pairs(tokenizer: PreTrainedTokenizerBase, questions: list[str], responses: list[str]) -> list[SplitIds]:
    """Tokens of every question with its response; a token that stands for characters of both is the response's.

    Special tokens that the tokenizer puts behind every text (an end mark that the data do not have) are left off.
    """
    found: dict[int, SplitIds] = {}
    for made in (False, True):
        rows = [number for number, question in enumerate(questions) if question.startswith(RENDERED) is made]
        if rows:
            pairs = [(questions[number], responses[number]) for number in rows]
            found |= zip(rows, _split(tokenizer, pairs, special=not made), strict=True)
    return [found[number] for number in range(len(questions))]


def _split(tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]], *, special: bool) -> list[SplitIds]:
    texts = [join_pair(*pair) for pair in pairs]
    if not tokenizer.is_fast:
        return [
            _split_by_prefix(tokenizer, text, pair, special=special) for text, pair in zip(texts, pairs, strict=True)
        ]
    encoded = tokenizer(texts, add_special_tokens=special, return_offsets_mapping=True, return_special_tokens_mask=True)
    columns = (encoded[name] for name in ("input_ids", "offset_mapping", "special_tokens_mask"))
    return [
        _by_offsets(ids, spans, added, boundary=len(_question_text(question)))
        for (question, _), ids, spans, added in zip(pairs, *columns, strict=True)
    ]


def _by_offsets(ids: list[int], spans: list[tuple[int, int]], added: list[int], boundary: int) -> SplitIds:
    outside = [bool(mark) and first == last for mark, (first, last) in zip(added, spans, strict=True)]
    lead = next((number for number, mark in enumerate(outside) if not mark), len(ids))
    end = next((number for number in range(len(ids), lead, -1) if not outside[number - 1]), lead)
    start = next((number for number in range(lead, end) if spans[number][1] > boundary), end)
    return SplitIds(ids[:end], start, lead)


def _split_by_prefix(
    tokenizer: PreTrainedTokenizerBase, text: str, pair: tuple[str, str], *, special: bool
) -> SplitIds:
    """For tokenizers that do not say which characters a token stands for: the question's tokens are those that the
    question alone begins with too."""
    ids = tokenizer(text, add_special_tokens=special)["input_ids"]
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    alone = tokenizer(_question_text(pair[0]), add_special_tokens=False)["input_ids"]
    lead = next((n for n in range(len(ids) - len(bare) + 1) if ids[n : n + len(bare)] == bare), 0)
    same = next((n for n, (one, other) in enumerate(zip(bare, alone, strict=False)) if one != other), len(alone))
    return SplitIds(ids[: lead + len(bare)], lead + min(same, len(bare)), lead)
