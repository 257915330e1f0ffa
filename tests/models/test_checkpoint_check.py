"""A checkpoint that cannot be used, or that asks for code, is one sentence, told before a weight is touched."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from restorelcc.base.digest import file_digest
from restorelcc.base.errors import BadInput
from restorelcc.models.checkpoint_check import loaded_config
from restorelcc.models.checkpoints import load_model, load_tokenizer, local_folder, save_checkpoint
from restorelcc.models.config_check import is_plain
from restorelcc.sparsity.streaming import empty_model
from tests import pico

Break = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "model"
    save_checkpoint(folder, pico.pico("llama"), pico.word_tokenizer())
    return folder


def config(**changes: Any) -> Break:
    """config.json with other fields; ... takes one away."""

    def change(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text()) | changes
        text = json.dumps({key: value for key, value in content.items() if value is not ...})
        (folder / "config.json").write_text(text)

    return change


def write(name: str, content: bytes | str) -> Break:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def header(change: Callable[[dict[str, Any]], Any]) -> Break:
    """The weights with another header, the numbers as they are."""

    def rewrite(folder: Path) -> None:
        path = folder / "model.safetensors"
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        entries = json.loads(raw[8 : 8 + length])
        entries = change(entries) or entries
        text = json.dumps(entries).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])

    return rewrite


Q = "model.layers.0.self_attn.q_proj.weight"


def index(names: dict[str, Any] | Any, whole_map: bool = False) -> Break:
    """Weights by an index, with the first tensor said to lie elsewhere."""

    def rewrite(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        tensors = load_file(folder / "model-00001-of-00001.safetensors")
        placed: Any = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
        document: Any = {"metadata": {}, "weight_map": names if whole_map else placed | {Q: names}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(document))

    return rewrite


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Break:
    def rewrite(folder: Path) -> None:
        content = load_file(folder / "model.safetensors")
        change(content)
        save_file(content, folder / "model.safetensors", {"format": "pt"})

    return rewrite


def tokenizer(change: Callable[[dict[str, Any]], Any], name: str = "tokenizer.json") -> Break:
    def rewrite(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return rewrite


def link(name: str, target: str) -> Break:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return make


def cut(name: str, by: int) -> Break:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-by])


_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")
_WRONG = {
    "text": "16",
    "negative": -3,
    "zero": 0,
    "huge": 10**12,
    "truth": True,
    "half": 2.5,
    "list": [1],
    "NaN": float("nan"),
}
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
BROKEN: dict[str, tuple[Break, str]] = {
    **{
        f"{key} {what}": (config(**{key: value}), "NaN is no number" if what == "NaN" else key)
        for key in _SIZES
        for what, value in _WRONG.items()
    },
    **{f"{key} null": (config(**{key: None}), key) for key in _SIZES},
    **{f"{key} missing": (config(**{key: ...}), "json says|split evenly|heads") for key in _SIZES},
    **{
        f"{key} {value}": (config(**{key: value}), key)
        for key in ("num_key_value_heads", "head_dim")
        for value in (0, -1, "2", [2])
    },
    "heads that do not share": (config(num_key_value_heads=3), "cannot share evenly"),
    "head width": (config(head_dim=8), "json says"),
    "head width odd": (config(head_dim=5), "head_dim"),
    "more layers": (config(num_hidden_layers=4), "num_hidden_layers"),
    "fewer layers": (config(num_hidden_layers=2), "num_hidden_layers"),
    "epsilon NaN": (config(rms_norm_eps=float("nan")), "NaN is no number"),
    "epsilon negative": (config(rms_norm_eps=-1.0), "above 0"),
    "epsilon text": (config(rms_norm_eps="small"), "above 0"),
    "infinity, deep": (
        config(rope_parameters={"rope_type": "default", "rope_theta": float("inf")}),
        "Infinity is no number",
    ),
    "no limit of a state space, but NaN": (config(time_step_limit=[0.0, float("nan")]), "NaN is no number"),
    "no limit below": (config(time_step_limit=[-float("inf"), 1.0]), "-Infinity is no number"),
    "infinity as the library writes it": (config(initializer_range={"__float__": "Infinity"}), "Infinity is no number"),
    "rope of no kind": (config(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}), "spiral"),
    "rope a list": (config(rope_parameters=[1]), "rope"),
    "activation": (config(hidden_act="no_such"), "no_such"),
    "tied by text": (config(tie_word_embeddings="yes"), "true or false"),
    "bias by number": (config(attention_bias=1), "true or false"),
    "dtype": (config(dtype="int4"), "dtype"),
    "dtype float8": (config(dtype="float8_e4m3fn"), "dtype"),
    "layer types": (config(layer_types=["full_attention"]), "layer_types"),
    "layer types of numbers": (config(layer_types=[1, 2, 3]), "layer_types"),
    "architectures": (config(architectures="LlamaForCausalLM"), "architectures"),
    "family missing": (config(model_type=...), "model_type"),
    "family a number": (config(model_type=7), "model_type"),
    "family a list": (config(model_type=["llama"]), "model_type"),
    "family unknown": (config(model_type="no_such"), "no_such"),
    "code in the config": (config(auto_map={"AutoModelForCausalLM": "evil.Model"}), r"custom code \(auto_map\)"),
    "code, deep": (config(text_config={"auto_map": {"AutoConfig": "evil.C"}}), r"custom code \(auto_map\)"),
    "a part for text where there is none": (config(text_config={"model_type": "llama"}), "text_config"),
    "labels without end": (config(num_labels=10**12), "num_labels"),
    "labels by text": (config(num_labels="2"), "num_labels"),
    "code in the tokenizer": (
        tokenizer(lambda c: c.update(auto_map={"AutoTokenizer": ["e.T", None]}), "tokenizer_config.json"),
        r"custom code \(auto_map\)",
    ),
    "kernel": (config(_attn_implementation="kernels-community/flash-attn"), "kernel"),
    "kernel by its other name": (config(attn_implementation="someone/kernel:function"), "kernel"),
    "kernel inside": (config(_attn_implementation_internal="someone/kernel"), "kernel"),
    "quantized": (config(quantization_config={"quant_method": "gptq", "bits": 4}), "quantized"),
    "quantized, no method": (config(quantization_config="yes"), "quantized"),
    "packed": (
        config(quantization_config={"quant_method": "compressed-tensors", "format": "pack-quantized"}),
        "quantized",
    ),
    "config a list": (write("config.json", "[]"), "holds a list, where an object"),
    "config null": (write("config.json", "null"), "where an object is expected"),
    "config {}": (write("config.json", "{}"), "model_type"),
    "config cut": (cut("config.json", 40), "JSON"),
    "config no text": (write("config.json", b"\xff\xfe\x00"), "not UTF-8 text"),
    "config nested without end": (write("config.json", "[" * 100_000), "JSON"),
    "config empty": (write("config.json", ""), "is empty"),
    "config a pointer": (write("config.json", LFS), "git-lfs"),
    "config a page": (write("config.json", "<!DOCTYPE html><html>login"), "page of the web"),
    "weights a pointer": (write("model.safetensors", LFS), "git-lfs"),
    "tokenizer a pointer": (write("tokenizer.json", LFS), "git-lfs"),
    "weights empty": (write("model.safetensors", ""), "is empty"),
    "weights a page": (write("model.safetensors", "<html>\n<body>404"), "page of the web"),
    "weights cut": (cut("model.safetensors", 1000), "model.safetensors"),
    "weights no header": (write("model.safetensors", b"\x05\0\0\0\0\0\0\0hello"), "model.safetensors"),
    "weights a huge header": (write("model.safetensors", b"\xff" * 64), "model.safetensors"),
    "header a list": (header(lambda entries: [1, 2]), "model.safetensors"),
    "entry a list": (header(lambda entries: entries.update({Q: [1]})), "model.safetensors"),
    "entry null": (header(lambda entries: entries.update({Q: None})), "model.safetensors"),
    "shape negative": (header(lambda entries: entries[Q].update(shape=[-24, -16])), "model.safetensors"),
    "shape of text": (header(lambda entries: entries[Q].update(shape=["24", 16])), "model.safetensors"),
    "shape of fractions": (header(lambda entries: entries[Q].update(shape=[24.0, 16])), "model.safetensors"),
    "shape too large": (header(lambda entries: entries[Q].update(shape=[2**40, 2**40])), "model.safetensors"),
    "type unknown": (header(lambda entries: entries[Q].update(dtype="F7")), "model.safetensors"),
    "type wider": (header(lambda entries: entries[Q].update(dtype="F64")), "model.safetensors"),
    "offsets reversed": (
        header(lambda entries: entries[Q].update(data_offsets=entries[Q]["data_offsets"][::-1])),
        "model.safetensors",
    ),
    "offsets negative": (header(lambda entries: entries[Q].update(data_offsets=[-8, 1528])), "model.safetensors"),
    "offsets beyond": (
        header(lambda entries: entries[Q].update(data_offsets=[10**9, 10**9 + 1536])),
        "model.safetensors",
    ),
    "offsets of text": (header(lambda entries: entries[Q].update(data_offsets="ab")), "model.safetensors"),
    "shape turned": (tensors(lambda c: c.update({Q: c[Q].T.contiguous()})), "json says"),
    "whole numbers": (tensors(lambda c: c.update({Q: c[Q].to(torch.int8)})), "not quantized"),
    "embedding short": (
        tensors(lambda c: c.update({"model.embed_tokens.weight": c["model.embed_tokens.weight"][:9].clone()})),
        "json says",
    ),
    "index absolute": (index("/etc/victim.safetensors"), "index.json names"),
    "index above": (index("../victim.safetensors"), "index.json names"),
    "index backslash": (index("..\\victim.safetensors"), "index.json names"),
    "index a pickle": (index("pytorch_model.bin"), "names 'pytorch_model.bin'"),
    "index a number": (index(5), "names 5"),
    "index null": (index(None), "names None"),
    "index nowhere": (index("gone.safetensors"), "gone.safetensors is missing"),
    "index a list": (index([], whole_map=True), "weight_map"),
    "index empty": (index({}, whole_map=True), "weight_map"),
    "index a NUL": (index("a\0.safetensors"), "index.json"),
    "link to weights": (link("model.safetensors", "/etc/hostname"), "leads out"),
    "link beside": (link("notes.txt", "../../secret"), "leads out"),
    "link of the tokenizer": (link("tokenizer.json", "/etc/hostname"), "leads out"),
    "link of the config": (link("config.json", "/etc/hostname"), "leads out"),
    "token beyond": (
        tokenizer(lambda c: c["added_tokens"].append({"id": 64, "content": "[PAD]", "special": True})),
        "64 rows",
    ),
    "tokenizer of another model": (
        tokenizer(lambda c: c["model"]["vocab"].update({f"x{n}": 64 + n for n in range(40)})),
        "64 rows",
    ),
    "tokenizer a list": (write("tokenizer.json", "[]"), "where an object is expected"),
    "tokenizer config a list": (write("tokenizer_config.json", "[]"), "where an object is expected"),
    "generation config null": (write("generation_config.json", "null"), "where an object is expected"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_checkpoint_is_one_sentence_and_nothing_is_touched(what: str, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    change, told = BROKEN[what]
    change(folder)
    before = {path.name: file_digest(path) for path in folder.iterdir() if path.is_file()}
    with pytest.raises(BadInput, match=told) as caught:
        empty_model(local_folder(folder), torch.float32)
    sentence = str(caught.value)
    assert "\n" not in sentence and 20 < len(sentence) < 700, sentence
    assert {path.name: file_digest(path) for path in folder.iterdir() if path.is_file()} == before


def test_there_are_cases_enough() -> None:
    assert len(BROKEN) >= 120


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_checkpoints_of_every_family_are_good(family: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, pico.pico(family), pico.word_tokenizer())
    assert local_folder(tmp_path) == tmp_path


def test_what_was_only_pruned_is_not_quantized(whole: Path, tmp_path: Path) -> None:
    """llm-compressor marks a pruned checkpoint, whose weights are plain, by a format: it loads as it is."""
    mark = {"quant_method": "compressed-tensors", "format": "dense", "config_groups": {}, "ignore": []}
    mark |= {"sparsity_config": {"format": "dense", "sparsity_structure": "2:4", "targets": ["Linear"]}}
    assert is_plain(mark) and not is_plain(mark | {"config_groups": {"group_0": {"weights": {"num_bits": 4}}}})
    packed = mark | {"sparsity_config": {"format": "sparse-24-bitmask"}}
    assert not is_plain(packed)
    shutil.copytree(whole, tmp_path / "packed")
    config(quantization_config=packed)(tmp_path / "packed")
    with pytest.raises(BadInput, match=r"is stored without its zeros \('sparse-24-bitmask'\): save it again as plain"):
        local_folder(tmp_path / "packed")
    shutil.copytree(whole, tmp_path / "model")
    config(quantization_config=mark)(tmp_path / "model")
    cpu = torch.device("cpu")
    one, other = (load_model(folder, torch.float32, cpu) for folder in (whole, tmp_path / "model"))
    assert torch.equal(one(pico.tokens()).logits, other(pico.tokens()).logits)
    assert not hasattr(loaded_config(tmp_path / "model"), "quantization_config")


def test_a_mark_of_images_beyond_the_embedding_is_no_fault(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, pico.pico("llama", vocab_size=2048), pico.word_tokenizer(2048))
    tokenizer(lambda c: c["added_tokens"].append({"id": 2048, "content": "<image>", "special": True}))(tmp_path)
    local_folder(tmp_path)
    tokenizer(lambda c: c.update(pad_token="<image>"), "tokenizer_config.json")(tmp_path)
    with pytest.raises(BadInput, match=r"'<image>' the number 2048, and the embedding has 2048 rows"):
        local_folder(tmp_path)


def test_code_beside_a_tokenizer_is_never_asked_about(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would ask on stdin, and `yes |` would run it."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    shutil.copytree(whole, tmp_path / "model")
    (tmp_path / "model" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config(auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})(tmp_path / "model")
    for load in (load_tokenizer, local_folder, lambda folder: load_model(folder, torch.float32, torch.device("cpu"))):
        with pytest.raises(BadInput, match="which is never run here"):
            load(tmp_path / "model")
    assert not (tmp_path / "ran").exists()
