"""Everything that later stages read as text: calibration, pairs, contrast tuples, held-out texts, tasks.

Here: the `corpus` section of params.yaml.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from restorelcc.base.section import Name, Section
from restorelcc.stages.corpus.templates import DOMAINS, NAMES, SKILLS


class WorldConfig(Section):
    """Sizes of the embedded microworld; counts of items are per task."""

    seed: int = Field(default=42, ge=0)
    people: int = Field(default=72, ge=40, le=len(NAMES))
    domains: int = Field(default=3, ge=2, le=len(DOMAINS))  # lists of values, each shared by two relations
    values: int = Field(default=12, ge=4, le=16)  # values per domain
    skills: int = Field(default=4, ge=2, le=len(SKILLS))  # yes-or-no facts per person
    documents: int = Field(default=40_000, ge=1)  # pretraining documents
    fact_share: float = Field(default=0.3, ge=0, lt=1)  # share of the pretraining documents that state facts
    lookup_share: float = Field(default=0.08, ge=0, lt=1)  # share of the pretraining documents that retell a story
    plain_share: float = Field(default=0.35, ge=0, lt=1)  # share of verdict documents that name one person only
    test_items: int = Field(default=400, ge=1)
    dev_items: int = Field(default=120, ge=1)
    train_pairs: int = Field(default=2_000, ge=5)  # over all tasks
    valid_pairs: int = Field(default=400, ge=5)  # over all tasks
    contrast_pairs: int = Field(default=1_000, ge=5)  # over all tasks
    calibration_documents: int = Field(default=512, ge=1)

    @model_validator(mode="after")
    def _shares_and_counts_fit(self) -> WorldConfig:
        if self.fact_share + self.lookup_share >= 1:
            raise ValueError("fact_share + lookup_share must stay below 1, to leave room for questions")
        if self.calibration_documents > self.documents:
            raise ValueError("calibration_documents must not exceed documents")
        return self


class OwnWordsConfig(Section):
    """How the dense model writes data itself, where they are `self`."""

    new_tokens: int = Field(default=256, ge=1, le=1048576)  # of one response; at most half of what the model takes in
    temperature: float = Field(default=0.7, ge=0, le=100)  # 0 takes the likeliest token each time


class CorpusConfig(Section):
    """What is written for every model, and the size of the embedded world."""

    seed: int = Field(default=42, ge=0)  # order and choice of rows from a user's files
    calibration: int = Field(default=128, ge=1)  # texts for pruning, from a user's file or the hub
    hub_characters: int = Field(default=12_000, ge=0)  # least length of a text from the hub; shorter rows are joined
    heldout: int | None = Field(default=None, ge=1)  # texts for perplexity at most; None is all of them
    train: int = Field(default=2000, ge=1)  # question/response pairs that compensation trains on
    valid: int = Field(default=200, ge=1)  # question/response pairs that choose the learning rate and the epoch
    contrast: int = Field(default=1000, ge=2)  # tuples (question, positive, negative), from the train pairs
    # Question + response, or the model's context where that is shorter; no later stage may allow less. Longer questions
    # lose tokens on the left; of a response that leaves them none, the end is cut off, or the row is dropped.
    max_tokens: int = Field(default=1024, ge=4)
    too_long: Literal["shorten", "drop"] = "shorten"
    # What finds the most similar other response: null (TF-IDF), a folder or hub id of a sentence-transformers model, or
    # auto: the paper's MiniLM where it is installed and downloaded already, else TF-IDF. The table says which.
    encoder: Name | None = "auto"
    own_words: OwnWordsConfig = OwnWordsConfig()
    microworld: WorldConfig = WorldConfig()
