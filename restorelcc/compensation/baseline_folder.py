"""A baseline's folder: its document, and a compensation, a whole checkpoint, both, or an adapter in peft's format."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from restorelcc.base.errors import BadInput

DOCUMENT = "baseline.json"  # name, kind ("compensation", "checkpoint" or "adapter"), parents, training
COMPENSATION = "compensation.safetensors"
MODEL = "model"
ADAPTER = "adapter"


def write_adapter(folder: Path, adapted: PeftModel) -> None:
    """adapter_config.json and adapter_model.safetensors; nothing in them says where the model lay."""
    adapted.peft_config["default"].base_model_name_or_path = None
    adapted.save_pretrained(str(folder), safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # a template without content


def read_adapter(folder: Path, model: PreTrainedModel) -> PeftModel:
    """The model with the adapter beside its weights. Raises BadInput without a safetensors file: no pickle is read."""
    if not (folder / "adapter_model.safetensors").is_file():
        raise BadInput(f"{folder} holds no adapter_model.safetensors: run the stage that writes it (dvc repro)")
    return PeftModel.from_pretrained(model, folder).eval()
