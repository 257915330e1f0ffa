"""Typed `corpus` section of params.yaml."""

from __future__ import annotations

from pydantic import Field

from restorelcc.core.section import Section
from restorelcc.corpus.microworld import WorldConfig


class CorpusConfig(Section):
    """What is written for every model, and the size of the embedded world."""

    seed: int = Field(default=42, ge=0)  # order and choice of rows from a user's files
    calibration: int = Field(default=128, ge=1)  # texts for pruning, from a user's file or the hub
    hub_characters: int = Field(default=12_000, ge=0)  # least length of a text from the hub; shorter rows are joined
    train: int = Field(default=2000, ge=1)  # question/response pairs that compensation trains on
    valid: int = Field(default=200, ge=1)  # question/response pairs that choose the learning rate and the epoch
    contrast: int = Field(default=1000, ge=2)  # tuples (question, positive, negative), from the train pairs
    microworld: WorldConfig = WorldConfig()
