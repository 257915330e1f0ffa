"""The one table of model families: where a family keeps its blocks, its out-projection and its prunable linears.

To add a family: add a row whose key is the checkpoint's `model_type`, and a pico config in tests/pico.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from restorelcc.core.errors import BadInput
from restorelcc.core.heads import HeadLayout

# How a stock checkpoint of the family can carry a bias on its out-projection:
# "native": it always has one; "flag": config.attention_bias turns biases on for q, k, v and o; "none": it cannot.
BiasRoute = Literal["native", "flag", "none"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row. Paths are dotted; `blocks` starts at the model, the rest at a block."""

    blocks: str
    out_proj: str
    linears: tuple[str, ...]
    bias: BiasRoute


_GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_QKVO = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")


def _llama_like(bias: BiasRoute) -> Family:
    return Family(blocks="model.layers", out_proj="self_attn.o_proj", linears=_QKVO + _GATED, bias=bias)


FAMILIES: dict[str, Family] = {
    "llama": _llama_like("flag"),
    "mistral": _llama_like("none"),
    "qwen2": _llama_like("none"),
    "qwen3": _llama_like("flag"),
    "gemma": _llama_like("flag"),
    "gemma2": _llama_like("flag"),
    "gemma3_text": _llama_like("flag"),
    "gpt_neox": Family(
        blocks="gpt_neox.layers",
        out_proj="attention.dense",
        linears=("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        bias="native",
    ),
    "opt": Family(
        blocks="model.decoder.layers",
        out_proj="self_attn.out_proj",
        linears=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"),
        bias="native",
    ),
    "phi": Family(
        blocks="model.layers",
        out_proj="self_attn.dense",
        linears=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense", "mlp.fc1", "mlp.fc2"),
        bias="native",
    ),
}


def family_of(model: PreTrainedModel) -> Family:
    """The table's row for a model. Raises BadInput for an unknown family, listing the known ones."""
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise BadInput(
            f"model family {kind!r} is not supported: known are {', '.join(FAMILIES)}; "
            "to add one, add a row to restorelcc/core/architectures.py (CONTRIBUTING.md has the recipe)"
        )
    return FAMILIES[kind]


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The model's L decoder blocks, in order."""
    blocks = model.get_submodule(family_of(model).blocks)
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def _linear(block: nn.Module, path: str) -> nn.Linear:
    module = block.get_submodule(path)
    if not isinstance(module, nn.Linear):
        raise BadInput(f"{path} is a {type(module).__name__}, not a Linear layer: such a model is not supported")
    return module


def out_projections(model: PreTrainedModel) -> list[nn.Linear]:
    """The L out-projections (weight [M, X]), in layer order."""
    path = family_of(model).out_proj
    return [_linear(block, path) for block in blocks_of(model)]


def prunable_linears(model: PreTrainedModel) -> Iterator[tuple[int, str, nn.Linear]]:
    """(layer, full parameter prefix, Linear) of every linear layer that pruning targets, in forward order."""
    family = family_of(model)
    for layer, block in enumerate(blocks_of(model)):
        for path in family.linears:
            yield layer, f"{family.blocks}.{layer}.{path}", _linear(block, path)


def head_layout(model: PreTrainedModel) -> HeadLayout:
    """L, H, D of a model; D = o_proj.in_features / num_attention_heads, the same in every layer or BadInput."""
    heads = model.config.num_attention_heads
    widths = sorted({projection.in_features for projection in out_projections(model)})
    if len(widths) != 1 or widths[0] % heads:
        raise BadInput(f"out-projections with {widths} inputs do not split evenly into {heads} heads in every layer")
    return HeadLayout(len(out_projections(model)), heads, widths[0] // heads)
