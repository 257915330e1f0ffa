"""The inputs and the result of a recovery method."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from restorelcc.base.cell import Cell
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import ModelEntry
from restorelcc.base.progress import is_first_process
from restorelcc.base.tables import read_texts
from restorelcc.models.architectures import head_layout
from restorelcc.models.checkpoints import context_of, load_entry, load_tokenizer, local_folder
from restorelcc.models.heads import HeadLayout
from restorelcc.models.runtime import pick_device
from restorelcc.models.text import batches_of_equal_length, encode_documents
from restorelcc.sparsity.kept import KeptCheckpoint
from restorelcc.stages.recover import RecoverConfig
from restorelcc.training.attached import TrainableCompensation
from restorelcc.training.compensation import Pairs
from restorelcc.training.pairs import read_pairs
from restorelcc.training.state import TrainingStates

HEAD_RATIO = "recover.head_ratio"  # as messages name it


@dataclass(frozen=True)
class Inputs:
    """Where a method finds its models and data. The dense and the pruned model are not in memory together, except that
    `eora` keeps the dense linears, and `reconstruct` loads both where a checkpoint cannot be streamed."""

    cell: Cell
    config: RecoverConfig
    entry: ModelEntry
    layout: Layout
    states: TrainingStates

    def pruned(self) -> PreTrainedModel:
        return load_entry(self.layout.pruned(self.cell), self.entry)

    def dense(self) -> PreTrainedModel:
        return load_entry(self.layout.dense(self.cell), self.entry)

    def kept(self, *, streamed: bool = False) -> KeptCheckpoint:
        """A copy of the pruned checkpoint that trained weights are written to; of several processes the first one's is
        shipped. streamed: what was written is read back from it, so that each process needs a copy."""
        rank = os.environ.get("RANK", "0")  # not that on its machine: machines may share the folder
        folder = self.states.folder / f"checkpoint-{rank}"
        source = local_folder(self.layout.pruned(self.cell))
        return KeptCheckpoint(source, folder, shipped=streamed or is_first_process())

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.layout.pruned(self.cell))

    def pairs(self) -> Pairs:
        return read_pairs(self.layout.corpus(self.cell), self.layout.pruned(self.cell), self.config)

    def calibration(self) -> list[Tensor]:
        """Token ids [B, T] of the calibration texts, unpadded."""
        texts = read_texts(self.layout.corpus(self.cell) / "calibration.parquet")
        longest = context_of(self.layout.pruned(self.cell), self.config.calibration_tokens)
        ids = encode_documents(self.tokenizer(), texts, longest)
        return self._batches(ids, max(1, 4 * self.config.calibration_tokens))

    def training_batches(self) -> list[Tensor]:
        """Token ids [B, T] of the training pairs, question and response, unpadded, batch_size sequences at most."""
        ids = [pair.ids for pair in self.pairs().train]
        return [part for batch in self._batches(ids, 2**30) for part in batch.split(self.config.batch_size)]

    def _batches(self, ids: list[list[int]], token_budget: int) -> list[Tensor]:
        device = pick_device(self.entry.device)
        groups = batches_of_equal_length([len(sequence) for sequence in ids], token_budget)
        return [torch.tensor([ids[number] for number in group], device=device) for group in groups]

    def part(self, name: str) -> Inputs:
        """The same inputs for one of several trainings, whose saved states are kept apart."""
        return dataclasses.replace(self, states=self.states.part(name))


@dataclass(frozen=True)
class Recovered:
    """A method's result: a compensation of the pruned model, a checkpoint with new weights, the two together, or an
    adapter."""

    heads: HeadLayout
    compensation: TrainableCompensation | None = None
    checkpoint: KeptCheckpoint | None = None  # its folder may be moved
    model: PreTrainedModel | None = None  # what is in the checkpoint, where it is in memory already
    adapter: Any = None  # a peft model
    params_trained: int = 0
    training: dict = field(default_factory=dict)
    unchanged: bool = False  # nothing that was tried beat the pruned model on the validation pairs
    weights_unchanged: bool = False  # of weights and then biases, the weights gained nothing and are the pruned ones

    def mended(self, entry: ModelEntry) -> PreTrainedModel:
        """The model with its new weights as the checkpoint has them, for what is trained next."""
        if self.model is not None:
            return self.model
        assert self.checkpoint is not None
        return load_entry(self.checkpoint.folder, entry)

    @classmethod
    def by(
        cls,
        model: PreTrainedModel,
        compensation: TrainableCompensation,
        training: dict | None = None,
        *,
        unchanged: bool = False,
    ) -> Recovered:
        """A compensation of this model."""
        trained = sum(part.numel() for part in compensation.parameters() if part.requires_grad)
        heads, found = head_layout(model), training or {}
        return cls(heads, compensation=compensation, params_trained=trained, training=found, unchanged=unchanged)
