"""A GGUF file becomes a stock checkpoint: same logits, same tokens; what would be another model is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from restorelcc.base.errors import BadInput
from restorelcc.base.packages import gguf_file
from restorelcc.models.checkpoints import load_model, load_tokenizer
from restorelcc.models.gguf import ARCHITECTURES, beside_weights, exact_dtype, write_converted
from restorelcc.models.tokenizers import source_config, source_tokenizer

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


def write_gguf(path: Path, model: PreTrainedModel, pre: str = "gpt-2", *, kind: str = "gpt2", **more: Any) -> Path:
    """What llama.cpp's converter writes: its names of tensors and fields, and its order of rows."""
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
        writer.add_rope_dimension_count(config.head_dim)
    writer.add_tokenizer_model(kind)
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
        if config.model_type == "llama" and "q_proj" in name:
            weight = _interleaved(weight, config.num_attention_heads)
        if config.model_type == "llama" and "k_proj" in name:
            weight = _interleaved(weight, config.num_key_value_heads)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_converted_model_is_the_same_one(architecture: str, tied: bool, tmp_path: Path) -> None:
    model = tiny(architecture, tied=tied)
    write_converted(write_gguf(tmp_path / "m.gguf", model), tmp_path / "out")
    found = load_model(tmp_path / "out", torch.float32, torch.device("cpu"))
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        assert torch.equal(found(ids).logits, model(ids).logits)
    assert found.config.tie_word_embeddings is tied and found.config.rms_norm_eps == 1e-5
    assert (tmp_path / "out" / "README.md").read_text() == "---\nlicense: apache-2.0\n---\n"


def test_config_and_tokenizer_alone_are_made_once_per_content(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", tiny("llama"))
    folder = beside_weights(file, tmp_path / ".work")
    config, tokenizer = (read("models.m", "m.gguf", None, tmp_path) for read in (source_config, source_tokenizer))
    assert (config.num_hidden_layers, config.num_key_value_heads, config.vocab_size) == (2, 2, len(tokenizer))
    assert tokenizer.decode(tokenizer(TEXTS[0])["input_ids"]) == TEXTS[0]
    assert tokenizer.apply_chat_template([{"content": "hi"}], tokenize=False) == "<|start|>hi<|end|>"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("pre", "parts"),
    [
        ("gpt-2", ["a", "Ġ1234", "'", "S"]),
        ("smollm", ["a", "Ġ", "1", "2", "3", "4", "'", "S"]),
        ("llama-bpe", ["a", "Ġ", "123", "4", "'S"]),
        ("qwen2", ["a", "Ġ", "1", "2", "3", "4", "'S"]),
    ],
)
def test_text_is_parted_as_the_file_says(pre: str, parts: list[str], tmp_path: Path) -> None:
    folder = beside_weights(write_gguf(tmp_path / "m.gguf", tiny("llama"), pre), tmp_path)
    backend = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    assert [part for part, _ in backend.pre_tokenizer.pre_tokenize_str("a 1234'S")] == parts


@pytest.mark.parametrize("first", [True, False])
def test_a_beginning_token_comes_where_the_file_says_so(first: bool, tmp_path: Path) -> None:
    write_converted(
        write_gguf(tmp_path / "m.gguf", tiny("llama"), **{"tokenizer.ggml.add_bos_token": first}), tmp_path / "out"
    )
    ids = load_tokenizer(tmp_path / "out")("a")["input_ids"]
    assert ids == ([1] if first else []) + [TOKENIZER["tokens"].index("a")]


@pytest.mark.parametrize(
    ("pre", "more", "said"),
    [
        ("gpt-2", {"llama.rope.scaling.type": "linear"}, "scales its rotary positions"),
        ("deepseek-coder", {}, "parts texts as 'deepseek-coder'"),
        ("default", {"kind": "llama"}, "a tokenizer of the kind 'llama'"),
    ],
)
def test_what_the_library_would_pass_over_is_refused(pre: str, more: dict, said: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", tiny("llama"), pre, **more)
    with pytest.raises(BadInput, match=said):
        write_converted(file, tmp_path / "out")


def test_other_architectures_and_other_files_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "rwkv7")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(BadInput, match=r"'rwkv7'.*\(it is of llama, qwen2, qwen3\): give the model as safetensors"):
        beside_weights(tmp_path / "m.gguf", tmp_path / ".work")
    (tmp_path / "n.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(BadInput, match="is no GGUF file"):
        beside_weights(tmp_path / "n.gguf", tmp_path / ".work")
    with pytest.raises(BadInput, match=r"'gone\.gguf', and there is no such file"):
        gguf_file("models.m.source", "gone.gguf", tmp_path)


@pytest.mark.parametrize(
    ("value", "dtype"), [(1.5, torch.bfloat16), (1 + 2**-10, torch.float16), (1 + 2**-20, torch.float32)]
)
def test_weights_keep_every_bit_in_the_smallest_dtype(value: float, dtype: torch.dtype) -> None:
    assert exact_dtype({"one": torch.ones(2), "two": torch.tensor([value])}) == dtype


def install(folder: Path, name: str, files: list[str]) -> None:
    """An installed package of the given files, as importlib.metadata finds it."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_a_package_stands_for_its_only_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    install(tmp_path / "site", "a-model", ["a/x.gguf", "a/__init__.py"])
    with pytest.raises(BadInput, match="is gone: install the package again"):
        gguf_file("models.m.source", "package:a-model", tmp_path)
    (tmp_path / "site" / "a").mkdir()
    (tmp_path / "site" / "a" / "x.gguf").write_bytes(b"GGUF")
    assert gguf_file("models.m.source", "package:a-model", tmp_path) == tmp_path / "site" / "a" / "x.gguf"
    install(tmp_path / "site", "two", ["a/x.gguf", "a/y.gguf"])
    with pytest.raises(BadInput, match="has 2 GGUF files"):
        gguf_file("models.m.source", "package:two", tmp_path)
    with pytest.raises(BadInput, match="no package 'absent' is installed: run `make real` in a clone, or `pip install"):
        gguf_file("models.m.source", "package:absent", tmp_path)
    assert gguf_file("models.m.source", "owner/name", tmp_path) is None
