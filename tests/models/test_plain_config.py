"""A config.json read without its class says what the class says; the class is asked only where it has to be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.configuration_utils import ALLOWED_LAYER_TYPES, remap_legacy_layer_types
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from restorelcc.base.documents import read_json, write_json
from restorelcc.base.errors import BadInput
from restorelcc.models import checkpoint_check
from restorelcc.models.checkpoint_check import loaded_config, plain_config
from restorelcc.models.config_check import _MOST
from restorelcc.models.config_facts import (
    WITH_HEADS,
    context_of_config,
    family_of_config,
    ffn_width_of_config,
    kv_heads_of_config,
    layout_of_config,
    text_config,
)
from restorelcc.models.config_names import EXPERT_COUNTS, LAYER_TYPES, lacks, own_name
from restorelcc.models.families import FAMILIES
from restorelcc.models.tensor_bytes import TensorBytes, densest_group, tensor_bytes
from restorelcc.models.tensor_files import DTYPES, stored_tensors
from tests import pico

# Their layers with heads, or their number of channels, are worked out by the class.
_ASK = {"gpt_neo", "gptj", "jamba", "bamba", "falcon_h1", "nemotron_h"}


def _facts(config: Any) -> tuple[Any, ...]:
    text = text_config(config)
    width = getattr(text, "word_embed_proj_dim", None) or text.hidden_size
    told = (family_of_config(config), layout_of_config(config), ffn_width_of_config(config), kv_heads_of_config(config))
    return (config.model_type, text.vocab_size, width, text.num_hidden_layers, text.num_attention_heads, *told)


@pytest.fixture
def without_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_check, "loaded_config", lambda _folder: pytest.fail("the class was asked"))


def _written(kind: str, folder: Path) -> Path:
    AutoConfig.for_model(kind, **pico.CONFIGS[kind]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_the_names_are_those_of_the_class(kind: str) -> None:
    config = CONFIG_MAPPING[kind]()
    text, family = config.get_text_config(), FAMILIES[kind]
    asked = {*_MOST, "layer_types"}
    own = {name: known for name, known in text.attribute_map.items() if name in asked}
    assert {name: own_name(kind, name) for name in asked} == {name: name for name in asked} | own
    keys = ["word_embed_proj_dim", family.kv_heads_key, *([family.head_dim_key] if family.free_head_dim else [])]
    assert {key: lacks(kind, key) for key in keys} == {key: not hasattr(text, key) for key in keys}
    assert (context_of_config(config) is None) == (kind == "bloom")
    if not family.experts:  # of others nobody asks
        assert not any(getattr(config, key, None) for key in EXPERT_COUNTS)


@pytest.mark.parametrize("kind", sorted(FAMILIES.keys() - _ASK))
@pytest.mark.usefixtures("without_class")
def test_a_saved_config_says_by_itself_what_its_class_says(kind: str, tmp_path: Path) -> None:
    folder = _written(kind, tmp_path)
    assert _facts(plain_config(folder)) == _facts(AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize("kind", sorted(_ASK))
def test_what_a_config_leaves_out_its_class_says(kind: str, tmp_path: Path) -> None:
    folder = _written(kind, tmp_path)
    assert _facts(plain_config(folder)) == _facts(AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *(
            (kind, key)
            for kind in ("llama", "gemma", "qwen2")
            for key in ("head_dim", "intermediate_size", "vocab_size")
        ),
        *((kind, "num_key_value_heads") for kind in ("llama", "gemma", "qwen2")),
        *(("llama", {key: None}) for key in ("head_dim", "num_key_value_heads")),
        ("gpt2", {"n_inner": None}),
        ("gpt2", {"num_hidden_layers": 2}),  # beside n_layer
    ],
)
def test_a_field_that_is_missing_or_null_is_what_the_class_makes_of_it(
    kind: str, change: str | dict[str, Any], tmp_path: Path
) -> None:
    folder = _written(kind, tmp_path)
    values = read_json(folder / "config.json")
    if isinstance(change, str):
        values.pop(change, None)
    else:
        values |= change
    write_json(folder / "config.json", values)
    assert _facts(plain_config(folder)) == _facts(AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize(("kind", "key"), [("granitemoehybrid", "layer_types"), ("nemotron_h", "layers_block_type")])
def test_former_names_of_layers_are_those_of_today(kind: str, key: str, tmp_path: Path) -> None:
    """As Granite 4 and Nemotron-H have them on the hub."""
    folder = _written(kind, tmp_path)
    values, former = read_json(folder / "config.json"), {"full_attention": "attention", "linear_attention": "mamba"}
    expected = _facts(plain_config(folder))
    values[key] = [former.get(name, name) for name in values[key]]
    assert {"attention", "mamba"} <= set(values[key])
    write_json(folder / "config.json", values)
    assert _facts(plain_config(folder)) == expected == _facts(AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize("count", [0, 1, None, "8", True])
def test_one_expert_is_no_mixture(count: object, tmp_path: Path) -> None:
    """As the dense models of Hunyuan have it on the hub."""
    folder = _written("hunyuan_v1_dense", tmp_path)
    expected = _facts(plain_config(folder))
    values = read_json(folder / "config.json") | {"num_experts": count}
    write_json(folder / "config.json", values)
    assert _facts(plain_config(folder)) == expected == _facts(AutoConfig.from_pretrained(folder))
    write_json(folder / "config.json", values | {"num_experts": 2})
    for config in (plain_config(folder), AutoConfig.from_pretrained(folder)):
        with pytest.raises(BadInput, match="'hunyuan_v1_dense' is a mixture of experts"):
            family_of_config(config)


def test_the_kinds_of_layers_are_those_of_the_library() -> None:
    assert set(LAYER_TYPES) <= set(ALLOWED_LAYER_TYPES)
    assert set(WITH_HEADS) <= set(LAYER_TYPES)
    assert remap_legacy_layer_types(list(LAYER_TYPES)) == list(LAYER_TYPES)


@pytest.mark.parametrize("kind", ["bamba", "falcon_h1", "granitemoehybrid", "nemotron_h"])
def test_a_state_space_may_have_no_limit(kind: str, tmp_path: Path) -> None:
    """Nemotron-H's config.json on the hub has a bare Infinity, which is no JSON, and which transformers reads."""
    folder = _written(kind, tmp_path)
    values = read_json(folder / "config.json")
    expected = _facts(plain_config(folder))
    assert values["time_step_limit"][1] == {"__float__": "Infinity"}
    (folder / "config.json").write_text(json.dumps(values | {"time_step_limit": [0.0, math.inf]}), encoding="utf-8")
    assert ", Infinity]" in (folder / "config.json").read_text(encoding="utf-8")
    assert _facts(plain_config(folder)) == expected
    assert loaded_config(folder).time_step_limit[1] == math.inf


@pytest.mark.parametrize("code", sorted(DTYPES))
def test_zeros_of_every_dtype_are_those_that_torch_finds(code: str, tmp_path: Path) -> None:
    dtype = DTYPES[code]
    if dtype == torch.bool:
        content = bytes([0, 1] * 128)
    else:
        content = bytes(16) + bytes(range(256)) + b"".join(bytes(n) + b"\x80" for n in (0, 1, 3, 7)) + bytes(4)
        content = content[: len(content) // 16 * 16] + b"\x00\x80" * 8
    (tmp_path / "numbers").write_bytes(content)
    flat = torch.frombuffer(bytearray(content), dtype=dtype)
    wide = flat.float() if code.startswith("F8") else flat
    stored = TensorBytes(tmp_path / "numbers", code, (len(flat) // 2, 2), 0, len(content))
    assert stored.numbers == len(flat)
    assert (stored.nonzero() == (wide != 0).reshape(-1, 2).numpy()).all()
    assert (stored.as_linear(True).nonzero() == (wide != 0).reshape(-1, 2).T.numpy()).all()


def test_the_densest_group_is_that_of_the_weight(tmp_path: Path) -> None:
    from restorelcc.sparsity.patterns import densest_group as of_weight

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        pico.pico("gpt2" if dtype == torch.float16 else "llama").to(dtype).save_pretrained(tmp_path / str(dtype))
        stored = stored_tensors(tmp_path / str(dtype))
        for name, found in tensor_bytes(tmp_path / str(dtype)).items():
            if len(found.shape) == 2:
                for group in (2, 4, 6, 8, 16):
                    for turned in (False, True):
                        weight_OI = stored[name].as_linear(turned).read()
                        assert densest_group(found.as_linear(turned).nonzero(), group) == of_weight(weight_OI, group)
