"""A model's data, role by role: what the stage `corpus` writes, and what `restorelcc check --model` reads through."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from restorelcc.base.errors import BadInput
from restorelcc.base.model_entry import DataFiles, ModelEntry
from restorelcc.models.text import check_special_tokens, check_texts, context_length, tokens_without_row
from restorelcc.models.tokenizers import source_config, source_tokenizer
from restorelcc.stages.corpus import CorpusConfig
from restorelcc.stages.corpus.account import Account
from restorelcc.stages.corpus.fit import Fitting
from restorelcc.stages.corpus.formats import Example
from restorelcc.stages.corpus.own_words import Writer
from restorelcc.stages.corpus.sources import Found, calibration_texts, heldout_texts, own_texts, pairs


@dataclass(frozen=True)
class Roles:
    """What a model's data hold, role by role, and how its rows fit the model. Each is read when it is asked for."""

    config: CorpusConfig
    model: ModelEntry
    root: Path
    key: str
    fits: bool = True  # whether pairs are fitted to the model; without its tokenizer they cannot be
    writes: bool = True  # whether the model writes data that are to be its own; else there are the questions alone

    @cached_property
    def fitting(self) -> Fitting:
        """How rows become the model's tokens. Raises BadInput where the model has no tokenizer or config."""
        source = (self.key, self.model.source, self.model.revision, self.root)
        config, tokenizer = source_config(*source), source_tokenizer(*source)
        check_special_tokens(tokenizer, config, self.model.source)
        limit = context_length(config, self.config.max_tokens)
        absent = tokens_without_row(tokenizer, config)
        return Fitting(tokenizer, limit, self.config.too_long, self._data.chat_template, self.key, absent)

    @property
    def _data(self) -> DataFiles:
        assert self.model.data is not None
        return self.model.data

    @cached_property
    def writer(self) -> Writer:
        """The model, where data are to be its own words."""
        return Writer(self.config, self.model, self.root, self.key, self.fitting)

    def close(self) -> None:
        """Let go of the model, if it was asked for."""
        if "writer" in self.__dict__:
            self.writer.close()

    def calibration(self) -> Found[str]:
        if self._data.writes("calibration"):
            write = self.writer.texts if self.writes else _questions
            return self._readable("calibration", own_texts(self._data, self.config, self.root, write))
        return self._readable("calibration", calibration_texts(self._data, self.config, self.root))

    def heldout(self) -> Found[str]:
        return self._readable("heldout", heldout_texts(self._data, self.config, self.root))

    def _readable(self, role: str, found: Found[str]) -> Found[str]:
        """The texts, if the model has a row for each of their tokens."""
        if self.fits:
            check_texts(found.items, self.fitting.absent, f"{self.key}.data.{role}")
        return found

    def instructions(self) -> Found[Example]:
        """Pairs that fit the model. Raises BadInput where they are too few to train, validate and probe with."""
        found = pairs(self._data, self.config, self.root, self._fitted)
        if self.fits and (self.writes or not self._data.writes("instructions")):
            written = (text for one in map(self.fitting.written, found.items) for text in (one.question, one.response))
            check_texts(written, self.fitting.absent, f"{self.key}.data.instructions")
        valid = self.valid(len(found.items))
        if valid == 0 or len(found.items) - valid < 2:
            raise BadInput(
                f"{self.key}.data.instructions has {len(found.items)} usable pairs: at least 5 are needed "
                f"({found.sentence()})"
            )
        return found

    def _fitted(self, batch: list[Example], account: Account) -> list[Example]:
        if self._data.writes("instructions"):
            return self.fitting.examples(self.writer.responses(batch, account), account) if self.writes else batch
        return self.fitting.examples(batch, account) if self.fits else batch

    def valid(self, count: int) -> int:
        """How many of `count` pairs validate: a fifth at most, and what is left when there is enough to train on."""
        return min(self.config.valid, max(count // 5, count - self.config.train))


def _questions(found: list[Example], account: Account) -> list[str]:
    return [example.question for example in found]
