"""Can a model have this config? Told field by field, with nothing loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from restorelcc.base.documents import FLOAT_TAG
from restorelcc.base.errors import BadInput
from restorelcc.models.config_names import own_name
from restorelcc.models.families import FAMILIES
from restorelcc.models.family import Family

AGAIN = "download or write the checkpoint again"
QUANTIZATION_KEYS = ("quantization_config", "compression_config")
ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")
_ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")
_MOST = {  # of each size; far beyond every model, and within what can be counted
    "hidden_size": 2**20,
    "num_hidden_layers": 10_000,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "vocab_size": 2**28,
    "intermediate_size": 2**24,
    "ffn_dim": 2**24,
    "word_embed_proj_dim": 2**20,
    "max_position_embeddings": 2**31,
    "sliding_window": 2**31,
}
_MOST_LABELS = 2**20  # of a classifier; the config's class makes a name for each
_MAY_BE_NULL = ("num_key_value_heads", "head_dim", "sliding_window")
_MAY_BE_INFINITE = ("time_step_limit",)  # of state spaces: no limit above
_POSITIVE = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_theta", "query_pre_attn_scalar")


def check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raises BadInput for the first field of a config.json that no model can have, or that loads a kernel."""

    def wrong(key: str, why: str) -> BadInput:
        return BadInput(f"{path}: {key} is {config.get(key)!r:.60}, {why}: correct it, or {AGAIN}")

    if not isinstance(labels := config.get("num_labels", 2), int) or not 0 <= labels <= _MOST_LABELS:
        raise wrong("num_labels", f"and should be a whole number up to {_MOST_LABELS:,}")
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise wrong("model_type", "and should name the family of the model")
    for key, value in config.items():
        if found := _not_finite(key, value):
            raise wrong(key, f"and {found} is no number to compute with")
    for key in _ATTENTION_KEYS:
        if config.get(key) is not None and config[key] not in ATTENTION:
            raise wrong(key, f"which would load a kernel from elsewhere; known are {', '.join(ATTENTION)}")
    _check_compression(path, config)
    if kind not in FAMILIES:
        return  # `family_of_config` refuses it, and names those that are known
    nested = config.get("text_config")
    if nested is not None and "language_model" not in FAMILIES[kind].blocks:
        raise wrong("text_config", f"which a model of the family {kind} does not have")
    if isinstance(nested, dict):
        config = nested
    elif nested is not None:
        raise wrong("text_config", "and should hold the keys of the decoder")
    _check_sizes(config, kind, wrong)
    for key in _POSITIVE:
        value = config.get(key, 1)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
            raise wrong(key, "and should be a number above 0")
    for key in ("tie_word_embeddings", *FAMILIES[kind].bias_flags):
        if not isinstance(config.get(key, False), bool):
            raise wrong(key, "and should be true or false")
    for key in ("dtype", "torch_dtype"):
        if str(config.get(key) or "auto").removeprefix("torch.") not in _DTYPES:
            raise wrong(key, f"and weights can be pruned and restored as {', '.join(_DTYPES[:3])} alone")
    _check_layers_listed(config, wrong)
    _check_heads(config, FAMILIES[kind], kind, wrong)


def _check_sizes(config: Mapping[str, Any], kind: str, wrong: Any) -> None:
    for name, most in _MOST.items():
        value = config.get(key := own_name(kind, name), 1)
        if value is None and (name in _MAY_BE_NULL or getattr(_defaults(kind), key, 1) is None):
            continue
        if name == "sliding_window" and value == 0 and config.get("use_sliding_window") is False:
            continue  # so Qwen2-MoE's class writes it
        if not is_whole(value) or not 0 < value <= most:
            raise wrong(key, f"and should be a whole number from 1 to {most:,}")


def _check_layers_listed(config: Mapping[str, Any], wrong: Any) -> None:
    names, layers = config.get("layer_types"), config.get("num_hidden_layers")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise wrong("layer_types", "and should be a list of names")
    if names is not None and layers is not None and len(names) != layers:
        raise wrong("layer_types", f"{len(names)} names for {layers} layers")
    classes = config.get("architectures")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise wrong("architectures", "and should be a list of names of classes")


def _check_heads(config: Mapping[str, Any], family: Family, kind: str, wrong: Any) -> None:
    """Whole heads: a width that splits into them, and query heads that split among the key/value heads."""
    width, heads, groups = _sizes(config, kind, "hidden_size", "num_attention_heads", "num_key_value_heads")
    if groups and heads % groups:
        raise wrong("num_attention_heads", f"which {groups} key/value heads (num_key_value_heads) cannot share evenly")
    if width % heads and not (family.free_head_dim and _own_head_dim(config, family, kind)):
        raise wrong("hidden_size", f"which does not split evenly into {heads} heads (num_attention_heads)")


def _own_head_dim(config: Mapping[str, Any], family: Family, kind: str) -> Any:
    return config.get(family.head_dim_key) or getattr(_defaults(kind), family.head_dim_key, None)


@lru_cache
def _defaults(kind: str) -> Any:
    """A config of a family with what its class takes for every field. Importing the class takes seconds, so ask only
    where config.json leaves something to it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[kind]().get_text_config()


def _sizes(config: Mapping[str, Any], kind: str, *keys: str) -> list[int]:
    """Fields of a config, by the names that most classes have for them; where one is missing, what its class takes in
    its place, 0 for a null.

    (A default of the class that depends on another field, as the number of key/value heads does, counts as a null.)
    """

    def size(key: str) -> Any:
        if (own := own_name(kind, key)) in config:
            return config[own]
        return 0 if key == "num_key_value_heads" else getattr(_defaults(kind), key, None)

    return [int(size(key) or 0) for key in keys]


def is_plain(compression: object) -> bool:
    """Whether a `quantization_config` belongs to weights that are plain numbers: llm-compressor marks what it only
    pruned so, quant_method compressed-tensors with the format dense."""
    if not isinstance(compression, dict) or compression.get("quant_method") != "compressed-tensors":
        return False
    sparsity = compression.get("sparsity_config") or {}
    formats = {compression.get("format", "dense"), sparsity.get("format", "dense") if isinstance(sparsity, dict) else 0}
    return formats == {"dense"} and not compression.get("config_groups") and not compression.get("kv_cache_scheme")


def _check_compression(path: Path, config: Mapping[str, Any]) -> None:
    for key in QUANTIZATION_KEYS:
        found = config.get(key)
        if found and not is_plain(found):
            method = found.get("quant_method") if isinstance(found, dict) else found
            sparse = found.get("sparsity_config") if isinstance(found, dict) else None
            if isinstance(sparse, dict) and sparse.get("format", "dense") != "dense" and not found.get("config_groups"):
                raise BadInput(
                    f"{path.parent} is stored without its zeros ({sparse['format']!r:.40}): save it again as plain "
                    "weights, with llm-compressor by save_pretrained(..., save_compressed=False)"
                )
            raise BadInput(
                f"{path.parent} is a quantized checkpoint ({key}: {method!r:.40}), whose weights cannot be pruned or "
                "restored: give the original one"
            )


def _not_finite(key: str, value: Any) -> str | None:
    """The first NaN or infinity in a field, as `read_json` gives it, that no model can have; None for none."""
    if isinstance(value, dict) and value.keys() == {FLOAT_TAG}:
        name = str(value[FLOAT_TAG])
        return None if key in _MAY_BE_INFINITE and name == "Infinity" else name
    if isinstance(value, dict):
        return next((found for name, part in value.items() if (found := _not_finite(name, part))), None)
    if isinstance(value, list):
        return next((found for part in value if (found := _not_finite(key, part))), None)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else None


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
