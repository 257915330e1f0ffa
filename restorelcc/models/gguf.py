"""A model in one GGUF file as a stock checkpoint: weights dequantized by transformers, tokenizer, chat template.

What the file says and transformers does not read would give another model without a word. It is put right here where
that is possible, and refused otherwise.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Mapping
from copy import copy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers, processors
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from restorelcc.base.digest import cached_file_digest, file_digest
from restorelcc.base.errors import BadInput, one_line
from restorelcc.base.publish import put
from restorelcc.models.checkpoint_check import refused, wrong_keys

# What tests convert and compare: general.architecture of a GGUF file.
ARCHITECTURES = ("llama", "qwen2", "qwen3")
_BLOCK = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
# What a block of each has; transformers passes over any other tensor without a word.
_TENSORS = {
    "llama": frozenset(f"{name}.weight" for name in _BLOCK),
    "qwen2": frozenset([f"{name}.weight" for name in _BLOCK] + [f"attn_{name}.bias" for name in "qkv"]),
    "qwen3": frozenset(f"{name}.weight" for name in (*_BLOCK, "attn_q_norm", "attn_k_norm")),
}
_OUTSIDE = frozenset(("token_embd.weight", "output.weight", "output_norm.weight"))
_SINGLE_PRECISION = ("rms_norm_eps", "rope_theta")  # which GGUF has as float32: 1e-5 comes as 9.9999997e-06
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How each kind of byte-pair tokenizer (tokenizer.ggml.pre) parts a text before it merges.
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_PARTED = {
    "gpt-2": _GPT2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2]),
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_WORDS % "{1,3}"), "isolated"), _BYTES]),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_WORDS % ""), "isolated"), _BYTES]),
}


_MADE_BY = ("gguf", "tokenizers", "transformers")
_CONTROL, _USER_DEFINED = 3, 4  # types of tokens that are never parted or merged
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def beside_weights(path: Path, work: Path) -> Path:
    """A folder with config and tokenizer of a GGUF file, in a project's scratch folder `work`; made once for a content,
    by this code and the same packages.

    Raises BadInput for a file that is no GGUF, or whose model or tokenizer cannot be had exactly.
    """
    made_by = [file_digest(Path(__file__)), *(f"{name} {version(name)}" for name in _MADE_BY)]
    total = hashlib.sha256("\n".join([cached_file_digest(path, work), *made_by]).encode())
    folder = work / "gguf" / total.hexdigest()
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / "made"
            fields = _checked_fields(path)
            _config(path, fields).save_pretrained(made)
            _tokenizer(path, fields).save_pretrained(made)
            if not folder.is_dir():
                put(made, folder)
    return folder


def write_converted(path: Path, folder: Path) -> None:
    """Write a GGUF file as a stock checkpoint, in the smallest of bfloat16, float16 and float32 that holds every weight
    exactly: quantized weights need float32.

    Raises BadInput as `beside_weights`, and for weights that the model's class does not have, or lacks.
    """
    fields = _checked_fields(path)
    config, tokenizer = _config(path, fields), _tokenizer(path, fields)
    with refused("model", path):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model, report = loaded
    if wrong := wrong_keys(config, report):
        raise BadInput(f"{path} has {wrong[0]}: {wrong[1][:3]}")
    weights = model.state_dict()
    config = copy(config)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config  # put there while loading
    dtype = exact_dtype(weights)
    # transformers does not write a model that it read from GGUF, but does write one of the same class and weights.
    with torch.device("meta"):
        stock = type(model)(config)
    stock.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
    stock.tie_weights()
    stock.config.dtype = dtype
    stock.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    licence = one_line(fields.get("general.license") or "")
    (folder / "README.md").write_text(f"---\n{f'license: {licence}' if licence else ''}\n---\n", encoding="utf-8")


def exact_dtype(weights: Mapping[str, Tensor]) -> torch.dtype:
    """The smallest floating-point type that holds every one of the float32 weights as it is."""
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(weight.to(dtype).float(), weight) for weight in weights.values()):
            return dtype
    return torch.float32


def _checked_fields(path: Path) -> dict[str, Any]:
    """The file's fields. Raises BadInput for what transformers would pass over."""
    from gguf import GGUFReader

    if path.is_file() and path.open("rb").read(4) != b"GGUF":
        raise BadInput(f"{path} is no GGUF file by its first bytes: fetch it again")
    with refused("model", path):
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    name = str(fields.get("general.architecture"))
    if name not in ARCHITECTURES:
        raise BadInput(
            f"{path} holds a model of the architecture {one_line(name)!r:.60}, of which no exact conversion is known "
            f"here (it is of {', '.join(ARCHITECTURES)}): give the model as safetensors"
        )
    scaled = fields.get(f"{name}.rope.scaling.type", "none")
    if scaled != "none" or any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors):
        raise BadInput(f"{path} scales its rotary positions, which transformers drops: give the model as safetensors")
    if any(tensor.name.startswith("split.") for tensor in reader.tensors) or int(fields.get("split.count", 1)) > 1:
        raise BadInput(f"{path} is one of several parts of a model: join them with gguf-split --merge")
    for tensor in reader.tensors:
        if tensor.name not in _OUTSIDE and re.sub(r"^blk\.\d+\.", "", tensor.name) not in _TENSORS[name]:
            raise BadInput(
                f"{path} holds {one_line(tensor.name)!r:.60}, which transformers drops from a model of the "
                f"architecture {name}: give the model as safetensors"
            )
    return fields


def _config(path: Path, fields: Mapping[str, Any]) -> PretrainedConfig:
    with refused("config", path):
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    if head_dim := fields.get(f"{fields['general.architecture']}.attention.key_length"):
        config.head_dim = int(head_dim)
    whole = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turned = fields.get(f"{fields['general.architecture']}.rope.dimension_count", whole)
    if int(turned) != whole:
        raise BadInput(
            f"{path} has rotary positions in {turned} of the {whole} numbers of a head, which transformers drops: give "
            "the model as safetensors"
        )
    for name in _SINGLE_PRECISION:
        if isinstance(value := getattr(config, name, None), float):
            setattr(config, name, float(str(np.float32(value))))
    rotary = getattr(config, "rope_parameters", None)
    if isinstance(rotary, dict) and isinstance(rotary.get("rope_theta"), float):
        rotary["rope_theta"] = float(str(np.float32(rotary["rope_theta"])))
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    config._name_or_path = ""
    config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]  # type: ignore[attr-defined]
    return config


def _tokenizer(path: Path, fields: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer as llama.cpp has it: text parted in the same way, a beginning token where the file says so, or
    says nothing and the tokenizer is Llama 3's."""
    kind = fields.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise BadInput(
            f"{path} has a tokenizer of the kind {one_line(kind)!r:.60}, and only byte-pair ones (gpt2) are read "
            "exactly: give the model as safetensors"
        )
    tokenizer = _byte_pairs(path, fields)
    begins = fields.get("tokenizer.ggml.add_bos_token", fields.get("tokenizer.ggml.pre") == "llama-bpe")
    if begins and tokenizer.bos_token is not None:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokenizer.bos_token} $A",
            pair=f"{tokenizer.bos_token} $A {tokenizer.bos_token}:1 $B:1",
            special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)],
        )
    return tokenizer


def _byte_pairs(path: Path, fields: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer from its tokens, their types and the merges."""
    pre = str(fields.get("tokenizer.ggml.pre", "default"))
    if pre not in _PARTED:
        how = "does not say how it parts texts" if pre == "default" else f"parts texts as {one_line(pre)!r:.60}"
        raise BadInput(
            f"{path} {how} (tokenizer.ggml.pre; known are {', '.join(_PARTED)}): give the model as safetensors"
        )
    with refused("tokenizer", path):
        tokens: list[str] = fields["tokenizer.ggml.tokens"]
        merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
        backend = Tokenizer(
            BPE({token: number for number, token in enumerate(tokens)}, merges, ignore_merges=pre == "llama-bpe")
        )
        backend.pre_tokenizer, backend.decoder = _PARTED[pre], ByteLevel()
        for token, kind in zip(tokens, fields.get("tokenizer.ggml.token_type", ()), strict=False):
            if kind in (_CONTROL, _USER_DEFINED):
                added = AddedToken(token, normalized=False, special=kind == _CONTROL)
                (backend.add_special_tokens if kind == _CONTROL else backend.add_tokens)([added])
        special = {
            f"{name}_token": tokens[number]
            for name, field in _SPECIAL.items()
            if (number := fields.get(f"tokenizer.ggml.{field}_token_id")) is not None
        }
        template = fields.get("tokenizer.chat_template")
        return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **special)
