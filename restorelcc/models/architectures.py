"""The one table of model families: where a family keeps its blocks, its out-projection and its prunable linears.

To add a family: add a row whose key is the checkpoint's `model_type`, and a pico config in tests/pico.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from restorelcc.base.errors import BadInput
from restorelcc.models.heads import HeadLayout

# How a stock checkpoint of the family can carry a bias on a linear:
# "native": it has one unless its config says otherwise; "flag": a key of the config turns it on; "none": it cannot.
BiasRoute = Literal["native", "flag", "none"]
# Which layers see only config.sliding_window tokens back, where that is set; "listed": those config.layer_types names.
Windows = Literal["never", "every", "listed"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row. Paths are dotted; `blocks` starts at the model, the rest at a block."""

    blocks: str
    qkv: tuple[str, ...]  # query, key and value projection, in this order; one name where they are fused head by head
    out_proj: str
    ffn_in: tuple[str, ...]  # linears whose rows are the FFN's channels
    ffn_out: str  # the linear whose columns are the FFN's channels
    native_biases: tuple[str, ...] = ()  # linears with a bias unless the config says otherwise
    # Key of the config -> the linears that have a bias when it is true, and have none when it is false.
    bias_flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    windows: Windows = "never"
    ffn_width: str = "intermediate_size"  # the config's key for the number of channels
    # Whether the class reads head_dim from the config. Where it is hidden size / heads, heads cannot be sliced off.
    free_head_dim: bool = True

    @property
    def linears(self) -> tuple[str, ...]:
        """What pruning targets, in forward order."""
        return (*self.qkv, self.out_proj, *self.ffn_in, self.ffn_out)

    @property
    def bias(self) -> BiasRoute:
        """How the out-projection can carry a bias."""
        return self.bias_route(self.out_proj)

    def bias_route(self, path: str) -> BiasRoute:
        """How a stock checkpoint can carry a bias on the linear at `path`."""
        if path in self.native_biases:
            return "native"
        return "none" if self.bias_flag(path) is None else "flag"

    def bias_flag(self, path: str) -> str | None:
        """The key of the config that turns a bias on `path` on; None where there is no such key."""
        return next((flag for flag, paths in self.bias_flags.items() if path in paths), None)

    def linear_path(self, name: str) -> str:
        """The path of a linear given by its path or by the last part of it. Raises BadInput, listing the known ones."""
        matches = [path for path in self.linears if name in (path, path.rpartition(".")[2])]
        if len(matches) != 1:
            raise BadInput(f"{name!r} is not a linear layer of this model family: it has {', '.join(self.linears)}")
        return matches[0]


_SELF_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_SELF_OUT = "self_attn.o_proj"
_GATED_FFN = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def _llama_like(*flags: str, native_biases: tuple[str, ...] = (), windows: Windows = "never") -> Family:
    """flags: which of attention_bias (q, k, v, o) and mlp_bias (gate, up, down) the class reads from its config."""
    linears = {"attention_bias": (*_SELF_QKV, _SELF_OUT), "mlp_bias": _GATED_FFN}
    return Family(
        blocks="model.layers",
        qkv=_SELF_QKV,
        out_proj=_SELF_OUT,
        ffn_in=_GATED_FFN[:2],
        ffn_out=_GATED_FFN[2],
        native_biases=native_biases,
        bias_flags={flag: linears[flag] for flag in flags},
        windows=windows,
    )


FAMILIES: dict[str, Family] = {
    "llama": _llama_like("attention_bias", "mlp_bias"),
    "mistral": _llama_like(windows="every"),
    "qwen2": _llama_like(native_biases=_SELF_QKV, windows="listed"),
    "qwen3": _llama_like("attention_bias", windows="listed"),
    "gemma": _llama_like("attention_bias"),
    "gemma2": _llama_like("attention_bias", windows="listed"),
    "gemma3_text": _llama_like("attention_bias", windows="listed"),
    "gpt_neox": Family(
        blocks="gpt_neox.layers",
        qkv=("attention.query_key_value",),
        out_proj="attention.dense",
        ffn_in=("mlp.dense_h_to_4h",),
        ffn_out="mlp.dense_4h_to_h",
        native_biases=("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        bias_flags={"attention_bias": ("attention.query_key_value", "attention.dense")},
        free_head_dim=False,
    ),
    "opt": Family(
        blocks="model.decoder.layers",
        qkv=_SELF_QKV,
        out_proj="self_attn.out_proj",
        ffn_in=("fc1",),
        ffn_out="fc2",
        native_biases=(*_SELF_QKV, "self_attn.out_proj", "fc1", "fc2"),
        bias_flags={"enable_bias": (*_SELF_QKV, "self_attn.out_proj", "fc1", "fc2")},
        ffn_width="ffn_dim",
        free_head_dim=False,
    ),
    "phi": Family(
        blocks="model.layers",
        qkv=_SELF_QKV,
        out_proj="self_attn.dense",
        ffn_in=("mlp.fc1",),
        ffn_out="mlp.fc2",
        native_biases=(*_SELF_QKV, "self_attn.dense", "mlp.fc1", "mlp.fc2"),
    ),
}

# What a config calls the number of experts of a layer, by family.
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def family_of_config(config: Any) -> Family:
    """The table's row for a checkpoint's config. Raises BadInput for an unknown family, listing the known ones."""
    kind = config.model_type
    if any(getattr(config, key, None) for key in _EXPERT_COUNTS):
        raise BadInput(
            f"model family {kind!r} is a mixture of experts, whose experts are fused into one tensor per layer instead "
            "of Linear layers: such models cannot be pruned or restored here, use a dense one"
        )
    if kind not in FAMILIES:
        raise BadInput(
            f"model family {kind!r} is not supported: known are {', '.join(FAMILIES)}; "
            "to add one, add a row to restorelcc/models/architectures.py (CONTRIBUTING.md has the recipe)"
        )
    return FAMILIES[kind]


def family_of(model: PreTrainedModel) -> Family:
    """The table's row for a model. Raises BadInput for an unknown family, listing the known ones."""
    return family_of_config(model.config)


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The model's L decoder blocks, in order."""
    blocks = model.get_submodule(family_of(model).blocks)
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def linear_of(block: nn.Module, path: str) -> nn.Linear:
    """The Linear at a path of the table. Raises BadInput when the model has something else there."""
    module = block.get_submodule(path)
    module = getattr(module, "base_layer", module)  # with an adapter the Linear is inside
    if not isinstance(module, nn.Linear):
        raise BadInput(f"{path} is a {type(module).__name__}, not a Linear layer: such a model is not supported")
    return module


def out_projections(model: PreTrainedModel) -> list[nn.Linear]:
    """The L out-projections (weight [M, X]), in layer order."""
    path = family_of(model).out_proj
    return [linear_of(block, path) for block in blocks_of(model)]


def prunable_linears(model: PreTrainedModel) -> Iterator[tuple[int, str, nn.Linear]]:
    """(layer, full parameter prefix, Linear) of every linear layer that pruning targets, in forward order."""
    family = family_of(model)
    for layer, block in enumerate(blocks_of(model)):
        for path in family.linears:
            yield layer, f"{family.blocks}.{layer}.{path}", linear_of(block, path)


def head_layout(model: PreTrainedModel) -> HeadLayout:
    """L, H, D of a model; D = o_proj.in_features / num_attention_heads, the same in every layer or BadInput."""
    heads = model.config.num_attention_heads
    widths = sorted({projection.in_features for projection in out_projections(model)})
    if len(widths) != 1 or widths[0] % heads:
        raise BadInput(f"out-projections with {widths} inputs do not split evenly into {heads} heads in every layer")
    return HeadLayout(len(out_projections(model)), heads, widths[0] // heads)


def kv_heads(model: PreTrainedModel) -> int:
    """Key/value heads of a layer; query heads share one in groups of H / KV neighbours."""
    return getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads
