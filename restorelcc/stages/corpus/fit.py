"""Rows that a model can take in: too long a response is shortened or its row dropped, so that no later stage stops.

Whatever is longer than the tokens allowed loses tokens from the left of its question later (models/text.py). That
helps as long as the response leaves the question a token; here is seen to it that it does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from restorelcc.base.errors import BadInput
from restorelcc.models.response_mask import SplitIds, split_pairs
from restorelcc.models.text import encode_contrasts
from restorelcc.stages.corpus.account import NO_TOKEN, TOO_LONG, Account
from restorelcc.stages.corpus.chat import Refused, rendered
from restorelcc.stages.corpus.formats import Example
from restorelcc.stages.corpus.values import normal


@dataclass(frozen=True)
class Fitting:
    """How rows become a model's tokens, how many it takes, and what is done with rows that have more."""

    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    too_long: Literal["shorten", "drop"]
    chat_template: bool = False  # put questions of every format through the chat template
    key: str = "models.<name>"
    absent: Mapping[str, int] = field(default_factory=dict)  # tokens that the model's embedding has no row for

    def written(self, example: Example) -> Example:
        """The example as it stands in the tables, through the chat template where it is to be."""
        if not (self.chat_template or example.messages):
            return example
        return rendered(self.tokenizer, [example], self.key)[0]

    def examples(self, found: list[Example], account: Account) -> list[Example]:
        """Those that the chat template takes, where they go through it, and whose question keeps a token beside its
        response, with responses shortened where that is the way."""
        taken, texts = [], []
        for example in found:
            try:
                texts.append(self.written(example))
                taken.append(example)
            except Refused as refused:
                account.skip(refused.reason, example.row)
        splits = split_pairs(self.tokenizer, [text.question for text in texts], [text.response for text in texts])
        kept = []
        for example, split in zip(taken, splits, strict=True):
            if not split.lead < split.start < len(split.ids):
                account.skip(NO_TOKEN, example.row)
            elif len(split.ids) - self.max_tokens < split.start - split.lead:
                kept.append(example)
            elif (
                self.too_long == "drop"
                or (shorter := self._shortened(example.response, self._takes_response(example))) is None
            ):
                account.skip(TOO_LONG, example.row)
            else:
                account.shortened += 1
                kept.append(replace(example, response=shorter))
        return kept

    def contrasts(self, found: list[Example], account: Account) -> list[Example]:
        """Examples with one wrong response each, which fits beside the same question: shortened where it does not."""
        kept = []
        for example in found:
            account.read += 1
            fitting = self._contrast(example, account)
            if fitting is not None:
                account.used += 1
                kept.append(fitting)
        return kept

    def _contrast(self, example: Example, account: Account) -> Example | None:
        if self._is_contrast(example):
            return example
        other = replace(example, response=example.wrong[0], wrong=())
        if max(len(self._split(one).ids) for one in (example, other)) <= self.max_tokens:
            account.skip(NO_TOKEN, example.row)
            return None
        if self.too_long == "shorten":
            takes = self._takes_response(other)
            shorter = self._shortened(
                other.response, lambda text: takes(text) and self._is_contrast(replace(example, wrong=(text,)))
            )
            if shorter is not None and normal(shorter) != normal(example.response):
                account.shortened += 1
                return replace(example, wrong=(shorter,))
        account.skip(TOO_LONG, example.row)
        return None

    def _split(self, example: Example) -> SplitIds:
        text = self.written(example)
        return split_pairs(self.tokenizer, [text.question], [text.response])[0]

    def _is_contrast(self, example: Example) -> bool:
        """Whether question, response and wrong response go together through the functions of the later stages."""
        text = self.written(example)
        row = {"question": text.question, "positive": text.response, "negative": text.wrong[0]}
        try:
            encode_contrasts(self.tokenizer, [row], self.max_tokens)
        except BadInput:
            return False
        return True

    def _takes_response(self, example: Example) -> Callable[[str], bool]:
        """Whether a text, as the response of this question, leaves it a quarter of all tokens (or all of its own, where
        it has less), but one at least."""

        def takes(text: str) -> bool:
            split = self._split(replace(example, response=text))
            if not split.lead < split.start < len(split.ids):
                return False
            question = min(split.start - split.lead, max(1, self.max_tokens // 4))
            return split.lead + question + len(split.ids) - split.start <= self.max_tokens

        return takes

    @staticmethod
    def _shortened(response: str, takes: Callable[[str], bool]) -> str | None:
        """The longest beginning of a response that is taken, up to the end of a word where that leaves one; None where
        none is."""
        length = bisect_left(range(1, len(response)), True, key=lambda size: not takes(response[:size].rstrip()))
        cut = response[:length].rstrip()
        at_end_of_word = any(map(str.isspace, response[max(0, length - 1) : length + 1]))
        whole_words = cut if at_end_of_word else cut.rpartition(" ")[0].rstrip()
        return next((text for text in (whole_words, cut) if text and takes(text)), None)
