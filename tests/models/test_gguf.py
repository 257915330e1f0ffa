"""A GGUF file becomes a stock checkpoint: same logits, same tokens; what would be another model is refused."""

from __future__ import annotations

import sys
from copy import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from restorelcc.base.errors import BadInput
from restorelcc.base.packages import gguf_file
from restorelcc.models import gguf as gguf_module
from restorelcc.models.checkpoints import load_model, load_tokenizer
from restorelcc.models.gguf import ARCHITECTURES, beside_weights, exact_dtype, write_converted
from restorelcc.models.tokenizers import source_config, source_tokenizer
from tests.gguf_files import TEXTS, TOKENIZER, gguf, install, tiny, write_gguf


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


def test_another_version_of_what_converts_it_converts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(tmp_path / "m.gguf", tiny("llama"))
    first = beside_weights(file, tmp_path / ".work")
    assert beside_weights(file, tmp_path / ".work") == first
    real = gguf_module.version
    for package in ("transformers", "tokenizers", "gguf"):
        with monkeypatch.context() as patch:
            patch.setattr(gguf_module, "version", lambda name, new=package: "0" if name == new else real(name))
            assert beside_weights(file, tmp_path / ".work") != first


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


def test_biases_that_the_library_would_drop_are_refused(tmp_path: Path) -> None:
    config = copy(tiny("llama").config)
    config.attention_bias = True
    file = write_gguf(tmp_path / "m.gguf", AutoModelForCausalLM.from_config(config), interleave=False)
    with pytest.raises(BadInput, match=r"holds 'blk\.0\.attn_\w+\.bias', which transformers drops"):
        write_converted(file, tmp_path / "out")


@pytest.mark.parametrize(("pre", "first"), [("llama-bpe", True), ("gpt-2", False)])
def test_a_beginning_token_is_llama_3s_where_the_file_says_nothing(pre: str, first: bool, tmp_path: Path) -> None:
    write_converted(write_gguf(tmp_path / "m.gguf", tiny("llama"), pre), tmp_path / "out")
    assert (load_tokenizer(tmp_path / "out")("a")["input_ids"][0] == 1) is first


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
        ("gpt-2", {"turned": 8}, "rotary positions in 8 of the 16 numbers of a head"),
        ("deepseek-coder", {}, "parts texts as 'deepseek-coder'"),
        ("default", {}, "does not say how it parts texts"),
        (None, {}, "does not say how it parts texts"),
        ("default", {"kind": "llama"}, "a tokenizer of the kind 'llama'"),
    ],
)
def test_what_the_library_would_pass_over_is_refused(pre: str | None, more: dict, said: str, tmp_path: Path) -> None:
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
