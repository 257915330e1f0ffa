"""A copy of a checkpoint in which weights that were trained are written over; all else in it stays, bit for bit.

Letters: O output features, I input features.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.models.architectures import family_of, prunable_linears
from restorelcc.models.biases import write_with_zero_biases
from restorelcc.models.checkpoints import load_model
from restorelcc.models.tensor_files import StoredTensor, floating_dtypes, least_dtype, stored_tensors
from restorelcc.sparsity.patterns import retained
from restorelcc.sparsity.streaming import copy_checkpoint, empty_model, linears_by_name, read_config


class KeptCheckpoint:
    """The copy. A model may compute in another dtype than its checkpoint has: each tensor keeps that of the checkpoint.

    Of a checkpoint with former names, which no linear of the class goes by, it has the present names.
    """

    def __init__(self, source: Path, folder: Path, *, shipped: bool = True, biased: bool = False) -> None:
        """source: a folder of weights and config (no reference); folder: what is there is replaced.

        shipped: False where another process writes the same, so that nothing need be copied: the model alone gets what
        will be read back. biased: the copy has a zero bias on every linear that can carry one and has none, which may
        take another class.
        """
        self.folder = folder
        by_name = linears_by_name(empty_model(source, torch.float32), stored_tensors(source))
        self._copied = shipped or biased or not by_name
        if self._copied:
            shutil.rmtree(folder, ignore_errors=True)
        if biased:
            _copy_with_biases(source, folder, by_name=by_name)
        elif not by_name:
            write_renamed(source, folder)
        elif shipped:
            copy_checkpoint(source, folder)
        self._stored = stored_tensors(folder if self._copied else source)

    @torch.no_grad()
    def write(self, model: PreTrainedModel, linears: Iterable[nn.Linear], *, with_zeros: bool = False) -> None:
        """Write the weights of these linears of the model, which then has what will be read back.

        with_zeros: as `retained` has it.
        """
        chosen, turned = set(map(id, linears)), family_of(model).transposed
        for _, name, linear in prunable_linears(model):
            if id(linear) in chosen:
                self._write(self._stored[f"{name}.weight"].as_linear(turned), linear.weight, with_zeros=with_zeros)

    @torch.no_grad()
    def write_biases(self, model: PreTrainedModel) -> None:
        """The same of the biases of all linears that pruning targets."""
        for _, name, linear in prunable_linears(model):
            if linear.bias is not None:
                self._write(self._stored[f"{name}.bias"], linear.bias, with_zeros=True)

    def _write(self, stored: StoredTensor, part: Tensor, *, with_zeros: bool) -> None:
        kept = retained(part, stored.read(), with_zeros=with_zeros)
        if self._copied:
            stored.overwrite(kept)
        part.copy_(kept)


def _copy_with_biases(source: Path, folder: Path, *, by_name: bool) -> None:
    if by_name:
        write_with_zero_biases(source, read_config(source), folder)
        return
    with tempfile.TemporaryDirectory(prefix="renamed-", dir=folder.parent) as scratch:
        renamed = Path(scratch) / "renamed"
        write_renamed(source, renamed)
        write_with_zero_biases(renamed, read_config(renamed), folder)


def write_renamed(source: Path, folder: Path) -> None:
    """Write a checkpoint by the names that its class gives to tensors, each as it is stored."""
    stored = stored_tensors(source)
    write_as_stored(load_model(source, widest(stored), torch.device("cpu")), stored, folder)


def widest(stored: dict[str, StoredTensor]) -> torch.dtype:
    """A dtype that holds every number of a checkpoint as it is."""
    return reduce(torch.promote_types, floating_dtypes(stored))


def write_as_stored(model: PreTrainedModel, stored: dict[str, StoredTensor], folder: Path) -> None:
    """Write a model as its class does, each tensor in the dtype that it is stored in, or, where it goes by a name that
    is not known there, in the least that holds it."""
    dtypes = floating_dtypes(stored)
    for name, part in model.named_parameters():
        former = name.removeprefix(f"{model.base_model_prefix}.")
        part.data = _as_in(stored.get(name) or stored.get(former), part.data, dtypes)
    model.save_pretrained(folder)


def _as_in(stored: StoredTensor | None, value: Tensor, dtypes: set[torch.dtype]) -> Tensor:
    """stored: None where the tensor went by a name that is not known."""
    if stored is not None:
        return value.to(stored.dtype)
    return value.to(least_dtype(value, dtypes) or value.dtype)
