"""Tiny models as GGUF files, as llama.cpp's converter writes them, and as the only file of an installed package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
TEXTS = ["The capital of France is Paris, 1234 times.\n\n  It's", "<|end|>a b<|start|>"]
_SPECIAL = ["<|pad|>", "<|start|>", "<|end|>"]


def _trained_tokenizer() -> dict[str, Any]:
    """The JSON of a small byte-pair tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=_SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    vocabulary = tokenizer.get_vocab()
    return {
        "tokens": sorted(vocabulary, key=vocabulary.__getitem__),
        "merges": [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]],
    }


TOKENIZER = _trained_tokenizer()


def tiny(architecture: str, *, tied: bool = True) -> PreTrainedModel:
    """A model of random weights, with H*D != M where the family allows it."""
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(TOKENIZER["tokens"]),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key in llama.cpp's order for rotary positions (Llama only)."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    pre: str | None = "gpt-2",
    *,
    kind: str = "gpt2",
    interleave: bool = True,
    turned: int | None = None,
    **more: Any,
) -> Path:
    """What llama.cpp's converter writes: its names of tensors and fields, and its order of rows. turned: how many
    numbers of a head have rotary positions, if not all."""
    config = model.config
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.model_type != "qwen2":
        writer.add_key_length(config.head_dim)
    if config.model_type == "llama":
        writer.add_rope_dimension_count(turned or config.head_dim)
    writer.add_tokenizer_model(kind)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENIZER["tokens"])
    writer.add_token_types([3 if token in _SPECIAL else 1 for token in TOKENIZER["tokens"]])
    writer.add_token_merges(TOKENIZER["merges"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template("{% for message in messages %}<|start|>{{ message['content'] }}<|end|>{% endfor %}")
    for name, value in more.items():
        writer.add_bool(name, value) if isinstance(value, bool) else writer.add_string(name, value)
    architecture = gguf.MODEL_ARCH[config.model_type.upper()]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        if interleave and config.model_type == "llama" and "q_proj" in name:
            weight = _interleaved(weight, config.num_attention_heads)
        if interleave and config.model_type == "llama" and "k_proj" in name:
            weight = _interleaved(weight, config.num_key_value_heads)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def install(folder: Path, name: str, files: list[str]) -> None:
    """An installed package of the given files, as importlib.metadata finds it."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
