"""Can this checkpoint be used, and is it harmless? Told from its config and the headers of its weights alone, before a
weight is read: fields of config.json, sizes against headers, links, code, kernels, pointers of git-lfs.

Everything that opens a checkpoint goes through `local_folder` (checkpoints.py), which calls `check_checkpoint`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from restorelcc.base.documents import read_json
from restorelcc.base.errors import BadInput, StageFailed, first_line, is_disk_full
from restorelcc.base.escaping import one_line
from restorelcc.base.names import check_links, inside
from restorelcc.base.stock_files import CONFIGS, TOKENIZER_FILES, check_stock
from restorelcc.base.weights import weights_of
from restorelcc.models.architectures import FAMILIES, Family, family_of_config
from restorelcc.models.tensor_files import StoredTensor, stored_tensors

ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")
_ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")
_AGAIN = "download or write the checkpoint again"
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
_MAY_BE_NULL = ("num_key_value_heads", "head_dim", "sliding_window")
_POSITIVE = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_theta", "query_pre_attn_scalar")
_LFS = b"version https://git-lfs"
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|embed_in)\.weight")
_BEYOND = 0.001  # share of a vocabulary that may lie beyond the embedding: marks of images, which no text yields


@contextmanager
def refused(what: str, source: Path) -> Iterator[None]:
    """Whatever a library makes of a checkpoint that it cannot use ends in BadInput: "no <what> can be loaded from ...".
    Our own errors, a full disk and a lack of memory pass through."""
    try:
        yield
    except (BadInput, StageFailed, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if is_disk_full(error):
            raise
        reason = f"{type(error).__name__}: " if isinstance(error, LookupError | AttributeError | TypeError) else ""
        said = one_line(" ".join(str(error).split())[:300] or first_line(error))
        raise BadInput(f"no {what} can be loaded from {source}: {reason}{said}; {_AGAIN}") from error


def loaded_config(source: Path) -> PretrainedConfig:
    """A checkpoint's config as its class has it, without the mark of a compression that left plain weights.

    Raises BadInput as `check_beside`, and for what the class does not take.
    """
    check_beside(source)
    with refused("config", source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config  # check_beside has refused all but plain ones
    return config


def check_checkpoint(folder: Path) -> None:
    """Raises BadInput, in one sentence, for a checkpoint folder that cannot be used or that asks for code."""
    check_beside(folder)
    stamps = sorted(
        (path.name, stat.st_size, stat.st_mtime_ns)
        for path in folder.iterdir()
        if path.is_file() and (stat := path.stat())
    )
    _check_once(folder, tuple(stamps))


def check_beside(folder: Path) -> None:
    """`check_checkpoint` without the weights and the tokenizer's content: links, config, code, kernels."""
    check_links(folder)
    for name in ("config.json", *TOKENIZER_FILES):
        check_whole(folder / name)
    for name in CONFIGS:
        if (folder / name).is_file():
            _document(folder / name)
    check_stock(folder)
    if (folder / "config.json").is_file():
        check_config(folder / "config.json", _document(folder / "config.json"))


def check_whole(path: Path) -> None:
    """Raises BadInput for a file that stands in for the one meant: empty, a pointer of git-lfs, a page of the web."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(_LFS):
        raise BadInput(f"{path} is a pointer of git-lfs, not the file itself: run `git lfs pull` in its folder")
    if not start:
        raise BadInput(f"{path} is empty: the download was cut off, {_AGAIN}")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise BadInput(f"{path} is a page of the web, not the file itself: {_AGAIN}, with a login where it needs one")


@lru_cache(maxsize=16)
def _check_once(folder: Path, _stamps: tuple[tuple[str, int, int], ...]) -> None:
    """What is in the files; their sizes and times say whether it was looked at before."""
    config = loaded_config(folder)
    family = family_of_config(config)
    with refused("model", folder):
        for name in weights_of(folder).names:
            check_whole(inside(folder, name, str(folder)))
        stored = stored_tensors(folder)
    _check_tensors(stored)
    _check_shapes(folder, config, family, stored)
    _check_token_ids(folder, int(config.vocab_size))


def _document(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not readable JSON ({one_line(first_line(error))}): {_AGAIN}") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path} holds {type(content).__name__} in place of keys and values: {_AGAIN}")
    return content


def check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raises BadInput for the first field of a config.json that no model can have, or that loads a kernel."""

    def wrong(key: str, why: str) -> BadInput:
        return BadInput(f"{path}: {key} is {config.get(key)!r:.60}, {why}: correct it, or {_AGAIN}")

    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise wrong("model_type", "and should name the family of the model")
    for key, value in config.items():
        if not _is_finite(value):
            raise wrong(key, "and every number should be finite")
    for key in _ATTENTION_KEYS:
        if config.get(key) is not None and config[key] not in ATTENTION:
            raise wrong(key, f"which would load a kernel from elsewhere; known are {', '.join(ATTENTION)}")
    _check_compression(path, config)
    if kind not in FAMILIES:
        return  # `family_of_config` refuses it, and names those that are known
    for key, most in _MOST.items():
        value = config.get(key, 1)
        if value is None and key in _MAY_BE_NULL:
            continue
        if not _is_whole(value) or not 0 < value <= most:
            raise wrong(key, f"and should be a whole number from 1 to {most:,}")
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
    own_width = family.free_head_dim and (config.get("head_dim") or getattr(CONFIG_MAPPING[kind](), "head_dim", None))
    if not own_width and width % heads:
        raise wrong("hidden_size", f"which does not split evenly into {heads} heads (num_attention_heads)")


def _sizes(config: Mapping[str, Any], kind: str, *keys: str) -> list[int]:
    """Fields of a config; where one is missing, what its class takes in its place, 0 for a null.

    (A default of the class that depends on another field, as the number of key/value heads does, counts as a null.)
    """
    default = CONFIG_MAPPING[kind]()
    missing = {key: 0 if key == "num_key_value_heads" else getattr(default, key, None) for key in keys}
    return [int(config.get(key, missing[key]) or 0) for key in keys]


def is_plain(compression: object) -> bool:
    """Whether a `quantization_config` belongs to weights that are plain numbers: llm-compressor marks what it only
    pruned so, quant_method compressed-tensors with the format dense."""
    if not isinstance(compression, dict) or compression.get("quant_method") != "compressed-tensors":
        return False
    sparsity = compression.get("sparsity_config") or {}
    formats = {compression.get("format", "dense"), sparsity.get("format", "dense") if isinstance(sparsity, dict) else 0}
    return formats == {"dense"} and not compression.get("config_groups") and not compression.get("kv_cache_scheme")


def _check_compression(path: Path, config: Mapping[str, Any]) -> None:
    for key in ("quantization_config", "compression_config"):
        found = config.get(key)
        if found and not is_plain(found):
            method = found.get("quant_method") if isinstance(found, dict) else found
            raise BadInput(
                f"{path.parent} is a quantized checkpoint ({key}: {method!r:.40}), whose weights cannot be pruned or "
                "restored: give the original one"
            )


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_tensors(stored: Mapping[str, StoredTensor]) -> None:
    """That every tensor has as many bytes as its shape and type need, of its own; what they hold is not looked at."""
    ends: dict[Path, tuple[int, str]] = {}
    for name, tensor in sorted(stored.items(), key=lambda item: (str(item[1].file), item[1].start, item[1].end)):
        end, other = ends.get(tensor.file, (0, ""))
        if tensor.start < end:
            raise BadInput(
                f"{tensor.file} holds {one_line(name)!r:.80} and {one_line(other)!r:.80} in the same bytes: {_AGAIN}"
            )
        ends[tensor.file] = (tensor.end, name)
    for name, tensor in stored.items():
        counted = all(_is_whole(length) and length >= 0 for length in tensor.shape)
        if not counted or math.prod(tensor.shape) * tensor.dtype.itemsize != tensor.end - tensor.start:
            raise BadInput(
                f"{tensor.file} holds {one_line(name)!r:.80} with shape {list(tensor.shape)!s:.60} in "
                f"{tensor.end - tensor.start} bytes, which do not agree: {_AGAIN}"
            )


def _check_shapes(folder: Path, config: Any, family: Family, stored: Mapping[str, StoredTensor]) -> None:
    """That the tensors of the blocks and the embedding have the sizes that config.json says, in as many layers.

    Checkpoints of older layouts, whose tensors go by other names, are for the class that loads them to judge.
    """
    shapes, found = _expected(config, family), set()
    block = re.compile(rf"(?:^|\.){re.escape(family.blocks.rpartition('.')[2])}\.(\d{{1,6}})\.(.+)\.weight")
    for name, tensor in stored.items():
        wanted = None
        if match := block.search(name):
            found.add(int(match[1]))
            wanted = shapes.get(match[2])
        elif _EMBEDDING.search(name):
            wanted = (config.vocab_size, getattr(config, "word_embed_proj_dim", None) or config.hidden_size)
        if wanted is not None and tensor.shape != wanted:
            raise BadInput(
                f"{tensor.file} holds {one_line(name)} with shape {tensor.shape}, its config.json says {wanted}: the "
                f"checkpoint is damaged, {_AGAIN}"
            )
        if wanted is not None and not tensor.dtype.is_floating_point:
            raise BadInput(f"{tensor.file} holds {one_line(name)} as {tensor.dtype}: give the original, not quantized")
    if found and found != set(range(config.num_hidden_layers)):
        raise BadInput(
            f"{folder} holds {len(found)} layers, the last is number {max(found)}, counted from 0; its config.json "
            f"says {config.num_hidden_layers} (num_hidden_layers): {_AGAIN}"
        )


def _expected(config: Any, family: Family) -> dict[str, tuple[int, int]]:
    """Shape of the weight of every linear of a block."""
    width, heads = config.hidden_size, config.num_attention_heads
    head_dim = (getattr(config, "head_dim", None) if family.free_head_dim else None) or width // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    inner, channels = heads * head_dim, getattr(config, family.ffn_width)
    shapes = {family.out_proj: (width, inner), family.ffn_out: (width, channels)}
    shapes |= dict.fromkeys(family.ffn_in, (channels, width))
    if len(family.qkv) == 1:
        return shapes | {family.qkv[0]: (3 * inner, width)}
    return shapes | dict(zip(family.qkv, ((inner, width), *[(groups * head_dim, width)] * 2), strict=True))


def _check_token_ids(folder: Path, rows: int) -> None:
    """Raises BadInput for a tokenizer whose tokens have no row in the embedding, so that using one ends in an error."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    content = _document(path)
    added, model = content.get("added_tokens"), content.get("model")
    ids: dict[str, int] = {}
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        ids |= {token: number for token, number in vocabulary.items() if _is_whole(number)}
    elif isinstance(vocabulary, list):
        ids |= {str(entry[0]): number for number, entry in enumerate(vocabulary) if isinstance(entry, list) and entry}
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict) and _is_whole(entry.get("id")):
            ids[str(entry.get("content"))] = entry["id"]
    beyond = {token: number for token, number in ids.items() if number >= rows}
    used = [token for token in beyond if token in _used_tokens(folder)]
    if used or len(beyond) > _BEYOND * rows:
        token = used[0] if used else next(iter(beyond))
        raise BadInput(
            f"{path} gives {one_line(token)!r:.60} the number {beyond[token]}, and the embedding has {rows} rows "
            "(vocab_size), counted from 0: give the tokenizer that belongs to the model, or a model whose embedding "
            "was enlarged with it"
        )


def _used_tokens(folder: Path) -> set[str]:
    """The tokens that begin, end and fill sequences."""
    found = set()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        content = _document(folder / name) if (folder / name).is_file() else {}
        for key in ("pad_token", "bos_token", "eos_token", "unk_token"):
            value = content.get(key)
            found.add(str(value.get("content")) if isinstance(value, dict) else str(value))
    return found
