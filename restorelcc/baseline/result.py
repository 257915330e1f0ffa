"""What a recovery method gives back, and what it is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from restorelcc.baseline.config import BaselineConfig
from restorelcc.core.architectures import head_layout
from restorelcc.core.attached import TrainableCompensation
from restorelcc.core.cell import Cell
from restorelcc.core.fit_compensation import Pairs
from restorelcc.core.heads import HeadLayout
from restorelcc.core.model_entry import ModelEntry
from restorelcc.core.runtime import pick_device, pick_dtype
from restorelcc.core.text import batches_of_equal_length, encode_documents
from restorelcc.io.checkpoints import load_model, load_tokenizer
from restorelcc.io.layout import Layout
from restorelcc.io.pairs import read_pairs
from restorelcc.io.tables import read_texts
from restorelcc.io.training_state import TrainingStates


@dataclass(frozen=True)
class Inputs:
    """Where a method finds its models and data. The dense and the pruned model are never in memory together."""

    cell: Cell
    config: BaselineConfig
    entry: ModelEntry
    layout: Layout
    states: TrainingStates

    def pruned(self) -> PreTrainedModel:
        return self._load(self.layout.pruned(self.cell))

    def dense(self) -> PreTrainedModel:
        return self._load(self.layout.dense(self.cell))

    def _load(self, folder: Path) -> PreTrainedModel:
        device = pick_device(self.entry.device)
        return load_model(folder, pick_dtype(self.entry.dtype, device), device)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.layout.pruned(self.cell))

    def pairs(self) -> Pairs:
        return read_pairs(self.layout.corpus(self.cell), self.tokenizer(), self.config.max_tokens)

    def calibration(self) -> list[torch.Tensor]:
        """Token ids [B, T] of the calibration texts, unpadded."""
        texts = read_texts(self.layout.corpus(self.cell) / "calibration.parquet")
        ids = encode_documents(self.tokenizer(), texts, self.config.calibration_tokens)
        device = pick_device(self.entry.device)
        groups = batches_of_equal_length([len(sequence) for sequence in ids], 4 * self.config.calibration_tokens)
        return [torch.tensor([ids[number] for number in group], device=device) for group in groups]


@dataclass(frozen=True)
class Recovered:
    """A method's result: exactly one of `compensation` (added to the pruned model) and `model` (a whole one)."""

    heads: HeadLayout
    compensation: TrainableCompensation | None = None
    model: PreTrainedModel | None = None
    training: dict = field(default_factory=dict)

    @classmethod
    def by(cls, model: PreTrainedModel, compensation: TrainableCompensation, training: dict | None = None) -> Recovered:
        """A compensation of this model."""
        return cls(head_layout(model), compensation=compensation, training=training or {})
