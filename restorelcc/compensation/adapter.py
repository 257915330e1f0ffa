"""An adapter added to the pruned weights, merged into them, or merged with the zeros put back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel

from restorelcc.base.errors import BadInput, first_line
from restorelcc.base.manifest import check_folder
from restorelcc.models.architectures import prunable_linears

ADAPTER_WEIGHTS = "adapter_model.safetensors"
REMASKED = "merged, zeros put back"
MERGED = ("merged", REMASKED)


def with_adapter(network: PreTrainedModel, adapter: Path, variant: str | None) -> tuple[PreTrainedModel, int]:
    """The model with the adapter, and how many numbers stay beside the weights: all of its own, none when merged.

    Merging fills zeros; REMASKED puts those of the pruned linears back afterwards.
    """
    linears = prunable_linears(network) if variant == REMASKED else ()
    kept = [linear.weight != 0 for _, _, linear in linears]
    adapted: Any = read_adapter(adapter, network)
    if variant is None:
        return network, sum(part.numel() for name, part in adapted.named_parameters() if "lora_" in name)
    merged: PreTrainedModel = adapted.merge_and_unload()
    if variant == REMASKED:
        with torch.no_grad():
            for (_, _, linear), mask_OI in zip(prunable_linears(merged), kept, strict=True):
                linear.weight.mul_(mask_OI)
    return merged, 0


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
