"""An adapter added to the pruned weights, merged into them, or merged with the zeros put back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from transformers import PreTrainedModel

from restorelcc.base.errors import BadInput, first_line
from restorelcc.base.manifest import check_folder
from restorelcc.models.architectures import family_of, prunable_linears
from restorelcc.models.tensor_files import StoredTensor, floating_dtypes, least_dtype

ADAPTER_WEIGHTS = "adapter_model.safetensors"
REMASKED = "merged, zeros put back"
MERGED = ("merged", REMASKED)


def with_adapter(
    network: PreTrainedModel, adapter: Path, variant: str | None, stored: Mapping[str, StoredTensor] | None = None
) -> tuple[PreTrainedModel, int]:
    """The model with the adapter, and how many numbers stay beside the weights: all of its own, none when merged.

    Merging fills zeros; REMASKED puts those of the pruned linears back afterwards. It is done in float32 whatever the
    model computes in: weights and zeros are taken as they are `stored` in their checkpoint, and rounded alike, which is
    what an export ships. Those that go by former names there are taken as they were loaded.
    """
    stored = stored or {}
    known = {id(linear): _stored(network, name, stored) for _, name, linear in prunable_linears(network)}
    adapted: Any = read_adapter(adapter, network)
    if variant is None:
        return network, sum(part.numel() for name, part in adapted.named_parameters() if "lora_" in name)
    dtypes = floating_dtypes(stored)
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            _merge(module, known.get(id(module.get_base_layer())), dtypes, with_zeros=variant == REMASKED)
    merged: PreTrainedModel = adapted.unload()
    return merged, 0


def _stored(network: PreTrainedModel, name: str, stored: Mapping[str, StoredTensor]) -> StoredTensor | None:
    """The weight [O, I] of a linear in the checkpoint; None where it goes by a former name that is not known."""
    for known in (name, name.removeprefix(f"{network.base_model_prefix}.")):
        if f"{known}.weight" in stored:
            return stored[f"{known}.weight"].as_linear(family_of(network).transposed)
    return None


@torch.no_grad()
def _merge(module: Any, stored: StoredTensor | None, dtypes: set[torch.dtype], *, with_zeros: bool) -> None:
    """Merge one adapted linear, and round its weight: as it is `stored`, or, where that is not known, to the only one
    of the checkpoint's `dtypes`, or to the least of them that held it before."""
    weight = module.get_base_layer().weight
    computed = weight.dtype
    before_OI = weight.data if stored is None else stored.read().to(weight.device)
    only = next(iter(dtypes)) if len(dtypes) == 1 else None
    rounded = only or least_dtype(before_OI, dtypes) or computed if stored is None else stored.dtype
    kept_OI = before_OI != 0 if with_zeros else None
    weight.data = before_OI.to(torch.promote_types(before_OI.dtype, torch.float32))
    module.merge()
    if kept_OI is not None:
        weight.mul_(kept_OI)
    weight.data = weight.data.to(rounded).to(computed)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Inside, peft asks a model for an attribute whose name is going to change, and nobody is told."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def read_adapter(folder: Path, model: PreTrainedModel) -> PeftModel:
    """The model with the adapter beside its weights. Raises BadInput without a safetensors file: no pickle is read."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise BadInput(f"{folder} holds no {ADAPTER_WEIGHTS}: run the stage that writes it (dvc repro)")
    check_folder(folder)
    try:
        with quiet_peft():
            return PeftModel.from_pretrained(model, folder).eval()
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise BadInput(f"no adapter can be loaded from {folder}: {first_line(error)}") from error
