"""Which linears of a stock checkpoint can carry a bias, and a checkpoint with zeros on all that can.

Letters: O output features.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, PretrainedConfig, PreTrainedModel

from restorelcc.base.documents import read_json, write_json
from restorelcc.models.architectures import family_of, family_of_config, prunable_linears, text_config
from restorelcc.models.config_check import QUANTIZATION_KEYS
from restorelcc.models.shards import PlannedTensor, write_shards
from restorelcc.models.tensor_files import StoredTensor, stored_tensors

# Families whose blocks compute what Llama's do, but whose class has no bias on the out-projection.
LLAMA_EQUIVALENTS = ("mistral", "qwen2", "ministral", "ministral3", "cwm")
_OF_MINISTRAL3 = ("llama_4_scaling_beta", "max_position_embeddings")  # keys of its rope_parameters


def biased_linears(config: PretrainedConfig) -> tuple[str, ...]:
    """Paths of the linears of a block that the config's class gives a bias."""
    family = family_of_config(config)

    def has_bias(path: str) -> bool:
        flag = family.bias_flag(path)
        return bool(getattr(text_config(config), flag)) if flag else path in family.native_biases

    return tuple(path for path in family.linears if has_bias(path))


def why_not_llama(config: PretrainedConfig) -> str | None:
    """Why a model of LLAMA_EQUIVALENTS is not exactly a Llama model; None when it is."""
    kind, window = config.model_type, getattr(config, "sliding_window", None)
    kinds_of_layer = set(getattr(config, "layer_types", None) or ())
    windowed = kind in ("mistral", "ministral3") or "sliding_attention" in kinds_of_layer
    if window is not None and windowed and window < config.max_position_embeddings:
        return (
            f"its attention has a sliding window of {window} tokens (config.sliding_window), which the Llama class "
            "does not have"
        )
    if beta := (getattr(config, "rope_parameters", None) or {}).get("llama_4_scaling_beta"):
        return f"it scales its queries by their position (llama_4_scaling_beta is {beta}), which Llama does not"
    try:
        llama_config(config)
    except Exception as error:  # whatever the class refuses its config with
        return f"the Llama class refuses its shape ({' '.join(str(error).split())[:200]})"
    return None


def llama_config(config: PretrainedConfig) -> LlamaConfig:
    """The Llama config that computes what a config of LLAMA_EQUIVALENTS without sliding window does."""
    known = LlamaConfig().to_dict()
    values = {key: value for key, value in config.to_dict().items() if key in known and key != "model_type"}
    heads = config.num_attention_heads
    if values.get("rope_parameters"):
        rope = values["rope_parameters"].items()
        values["rope_parameters"] = {key: value for key, value in rope if key not in _OF_MINISTRAL3}
    values["head_dim"] = getattr(config, "head_dim", None) or config.hidden_size // heads
    values["num_key_value_heads"] = getattr(config, "num_key_value_heads", None) or heads
    values |= {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "mlp_bias": False}
    written: Any = LlamaConfig(**values)
    written.validate()
    return written


def biased_config(config: PretrainedConfig) -> PretrainedConfig:
    """The config of the same model in a class with as many biases as there can be: its own with every key for biases
    turned on, or the equivalent Llama class."""
    if config.model_type in LLAMA_EQUIVALENTS and why_not_llama(config) is None:
        written: PretrainedConfig = llama_config(config)
    else:
        written = copy.deepcopy(config)
    for flag in family_of_config(written).bias_flags:
        setattr(text_config(written), flag, True)
    return written


def config_document(own: dict[str, Any], before: PretrainedConfig, written: PretrainedConfig) -> dict[str, Any]:
    """config.json of a checkpoint that is written again: its own document, with what another class or biases change.

    before: the config that `own` was read to; written: the same model's, with more biases or as the Llama class. The
    rope base stands in it under its present and its former key, because engines that know only the former one take
    10,000 where it is missing, without a word.
    """
    told = written.to_dict()
    if written.model_type != before.model_type:
        own = told | {"model_type": written.model_type, "dtype": own.get("dtype", own.get("torch_dtype"))}
    else:
        now, then = text_config(written), text_config(before)
        flags = family_of_config(written).bias_flags
        turned_on = {flag: getattr(now, flag) for flag in flags if getattr(then, flag) is False}
        # Where a model does more than text, a part of the config has the keys for text.
        own = own | (turned_on if then is before else {"text_config": own["text_config"] | turned_on})
    # How the source names its files, and that it was only pruned, which asks for a further package.
    dropped = ("transformers_weights", *QUANTIZATION_KEYS)
    return {key: value for key, value in own.items() if key not in dropped} | former_rope_keys(told)


def former_rope_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The rope base and scaling of a config.json as former versions of the classes read them."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope:  # none, or one for each kind of layer
        return {}
    keys: dict[str, Any] = {"rope_theta": rope["rope_theta"]}
    if rope.get("rope_type", "default") != "default":
        keys["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return keys


def write_with_zero_biases(source: Path, config: PretrainedConfig, folder: Path) -> None:
    """The checkpoint of `source` (of this config) with a zero bias on every linear that can carry one and has none.

    It computes what the source does. Written tensor by tensor; biases have the dtype of their weight.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written, stored = biased_config(config), stored_tensors(source)
    family = family_of_config(written)
    names = [f"{family.stored}.{layer}.{path}" for layer in range(text_config(written).num_hidden_layers)
             for path in biased_linears(written)]  # fmt: skip
    there = [name for name in names if not family.partial or f"{name}.weight" in stored]  # hybrids: not in every layer
    weights = {name: stored[f"{name}.weight"].as_linear(family.transposed) for name in there}
    planned = [PlannedTensor(name, tensor.dtype, tensor.shape, tensor.read) for name, tensor in stored.items()]
    planned += [_zeros(name, weight) for name, weight in weights.items() if f"{name}.bias" not in stored]
    for _ in write_shards(folder, planned):
        pass
    write_json(folder / "config.json", config_document(read_json(source / "config.json", tagged=True), config, written))
    if (source / "generation_config.json").is_file():
        shutil.copyfile(source / "generation_config.json", folder / "generation_config.json")


def _zeros(name: str, weight: StoredTensor) -> PlannedTensor:
    shape = (weight.shape[0],)
    return PlannedTensor(f"{name}.bias", weight.dtype, shape, lambda: torch.zeros(shape, dtype=weight.dtype))


def give_zero_biases(model: PreTrainedModel) -> None:
    """The same of a model in memory, whose class stays: zero biases on the linears that its class can give one."""
    family = family_of(model)
    for flag in family.bias_flags:
        setattr(text_config(model.config), flag, True)
    able = biased_linears(model.config)
    for _, name, linear in prunable_linears(model):
        if linear.bias is None and name.endswith(tuple(f".{path}" for path in able)):
            zeros_O = torch.zeros(linear.out_features, dtype=linear.weight.dtype, device=linear.weight.device)
            linear.bias = nn.Parameter(zeros_O, requires_grad=False)
