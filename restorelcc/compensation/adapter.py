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
from restorelcc.models.architectures import prunable_linears
from restorelcc.models.tensor_files import StoredTensor

ADAPTER_WEIGHTS = "adapter_model.safetensors"
REMASKED = "merged, zeros put back"
MERGED = ("merged", REMASKED)


def with_adapter(
    network: PreTrainedModel, adapter: Path, variant: str | None, stored: Mapping[str, StoredTensor] | None = None
) -> tuple[PreTrainedModel, int]:
    """The model with the adapter, and how many numbers stay beside the weights: all of its own, none when merged.

    Merging fills zeros; REMASKED puts those of the pruned linears back afterwards. It is done in float32 whatever the
    model computes in, and rounded as the weights are `stored` in their checkpoint, which is what an export ships.
    """
    dtypes = {id(linear): _stored_dtype(network, name, stored or {}) for _, name, linear in prunable_linears(network)}
    adapted: Any = read_adapter(adapter, network)
    if variant is None:
        return network, sum(part.numel() for name, part in adapted.named_parameters() if "lora_" in name)
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            _merge(module, dtypes.get(id(module.get_base_layer())), with_zeros=variant == REMASKED)
    merged: PreTrainedModel = adapted.unload()
    return merged, 0


def _stored_dtype(network: PreTrainedModel, name: str, stored: Mapping[str, StoredTensor]) -> torch.dtype | None:
    """That of a linear's weight in the checkpoint; where it goes by a former name, that of all weights if it is one."""
    for known in (name, name.removeprefix(f"{network.base_model_prefix}.")):
        if f"{known}.weight" in stored:
            return stored[f"{known}.weight"].dtype
    dtypes = {tensor.dtype for tensor in stored.values() if tensor.dtype.is_floating_point}
    return dtypes.pop() if len(dtypes) == 1 else None


@torch.no_grad()
def _merge(module: Any, stored: torch.dtype | None, *, with_zeros: bool) -> None:
    """Merge one adapted linear, and round its weight. stored: None where only the model's own dtype is known."""
    weight = module.get_base_layer().weight
    computed = weight.dtype
    kept_OI = weight != 0 if with_zeros else None
    weight.data = weight.data.to(torch.promote_types(computed, torch.float32))
    module.merge()
    if kept_OI is not None:
        weight.mul_(kept_OI)
    weight.data = weight.data.to(stored or computed).to(computed)


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
