"""A copy of a checkpoint in which weights that were trained are written over; all else in it stays, bit for bit.

Letters: O output features, I input features.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.models.architectures import family_of, prunable_linears
from restorelcc.models.checkpoints import load_model
from restorelcc.models.tensor_files import StoredTensor, stored_tensors
from restorelcc.sparsity.patterns import rounded
from restorelcc.sparsity.streaming import copy_checkpoint, empty_model, linears_by_name


class KeptCheckpoint:
    """The copy. A model may compute in another dtype than its checkpoint has: each tensor keeps that of the checkpoint.

    Of a checkpoint with former names, which no linear of the class goes by, it has the present names.
    """

    def __init__(self, source: Path, folder: Path, *, shipped: bool = True) -> None:
        """source: a folder of weights and config (no reference); folder: what is there is replaced.

        shipped: False where another process writes the same, so that nothing need be copied: the model alone gets what
        will be read back.
        """
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        by_name = linears_by_name(empty_model(source, torch.float32), stored_tensors(source))
        self._copied = shipped or not by_name
        if not by_name:
            _rename(source, folder)
        elif shipped:
            copy_checkpoint(source, folder)
        self._stored = stored_tensors(folder if self._copied else source)

    @torch.no_grad()
    def write(self, model: PreTrainedModel, linears: Iterable[nn.Linear], *, with_zeros: bool = False) -> None:
        """Write the weights of these linears of the model, which then has what will be read back.

        with_zeros: zeros of the model are zeros of the file, also where the checkpoint has a number that is one only in
        the model's dtype.
        """
        chosen, turned = set(map(id, linears)), family_of(model).transposed
        for _, name, linear in prunable_linears(model):
            if id(linear) in chosen:
                stored = self._stored[f"{name}.weight"].as_linear(turned)
                value_OI = linear.weight.cpu()
                kept_OI = retained(value_OI, stored.read())
                if with_zeros:
                    kept_OI.masked_fill_(value_OI == 0, 0)
                if self._copied:
                    stored.overwrite(kept_OI)
                linear.weight.copy_(kept_OI)


def retained(value: Tensor, before: Tensor) -> Tensor:
    """The value in the dtype of `before`: its very bits wherever the two are one number in the value's dtype, which may
    have fewer digits, and elsewhere the value rounded, but never to 0."""
    return torch.where(value == before.to(value.dtype), before, rounded(value, before.dtype))


def _rename(source: Path, folder: Path) -> None:
    """Write a checkpoint as its class does, each tensor in the dtype that it has or in the least that holds it."""
    stored = stored_tensors(source)
    dtypes = {tensor.dtype for tensor in stored.values() if tensor.dtype.is_floating_point}
    model = load_model(source, reduce(torch.promote_types, dtypes), torch.device("cpu"))
    for name, part in model.named_parameters():
        former = name.removeprefix(f"{model.base_model_prefix}.")
        part.data = _as_in(stored.get(name) or stored.get(former), part.data, dtypes)
    model.save_pretrained(folder)


def _as_in(stored: StoredTensor | None, value: Tensor, dtypes: set[torch.dtype]) -> Tensor:
    """stored: None where the tensor went by a name that is not known."""
    if stored is not None:
        return value.to(stored.dtype)
    for dtype in sorted(dtypes, key=lambda each: (each.itemsize, str(each))):
        if torch.equal(value.to(dtype).to(value.dtype), value):
            return value.to(dtype)
    return value
