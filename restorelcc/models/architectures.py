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
# How query, key and value lie in their linears: one linear each; in one linear, head by head; in one linear, all of q,
# then all of k, then all of v; in one linear, each key/value head behind the query heads that read it; or latent, where
# low-rank factors take the place of the three.
QkvRows = Literal["separate", "heads", "parts", "groups", "latent"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row. Paths are dotted; `blocks` starts at the model, the rest at a block."""

    blocks: str
    qkv: tuple[str, ...]  # query, key and value projection, in this order; one name where they are fused
    out_proj: str
    ffn_in: tuple[str, ...]  # linears whose rows are the FFN's channels
    ffn_out: str  # the linear whose columns are the FFN's channels
    qkv_rows: QkvRows = "separate"
    fused_ffn: bool = False  # the one linear of ffn_in holds the rows of a gate, then those that it gates
    native_biases: tuple[str, ...] = ()  # linears with a bias unless the config says otherwise
    # Key of the config -> the linears that have a bias when it is true, and have none when it is false.
    bias_flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    windows: Windows = "never"
    # The config's key for the number of channels; where it is missing or null, the class takes 4 * hidden size.
    ffn_width: str = "intermediate_size"
    # Whether the class reads head_dim from the config. Where it is hidden size / heads, heads cannot be sliced off.
    free_head_dim: bool = True
    head_dim_key: str = "head_dim"  # the config's key for the numbers of a head at the out-projection
    kv_heads_key: str = "num_key_value_heads"
    # Why heads and channels cannot be removed as wholes (slimgpt, slicing); None where they can.
    whole_parts_refused: str | None = None
    # Whether the class takes a mask of any shape along with positions, so that several sequences share a line.
    packs: bool = True
    stored_blocks: str | None = None  # what checkpoints call `blocks`, where they do not call it so
    output_in_tuple: bool = False  # whether a block gives its hidden state as the first of several

    @property
    def linears(self) -> tuple[str, ...]:
        """What pruning targets, in forward order."""
        return (*self.qkv, self.out_proj, *self.ffn_in, self.ffn_out)

    @property
    def stored(self) -> str:
        """What stands before a block's number in the names of a checkpoint's tensors."""
        return self.stored_blocks or self.blocks

    def qkv_of(self) -> tuple[tuple[str, ...], ...]:
        """The linears that make the queries, the keys and the values; some make several of them."""
        if self.qkv_rows == "latent":  # two that make queries, two that make keys and values
            return self.qkv[:2], self.qkv[2:], self.qkv[2:]
        return tuple((path,) for path in (self.qkv if len(self.qkv) == 3 else self.qkv * 3))

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


_LATENT = (
    "self_attn.q_a_proj",
    "self_attn.q_b_proj",
    "self_attn.kv_a_proj_with_mqa",
    "self_attn.kv_b_proj",
)
_PLAIN_FFN = ("mlp.up_proj", "mlp.down_proj")
_FUSED_GATE = ("mlp.gate_up_proj", "mlp.down_proj")
_FUSED = "the rows of its fused linears are not heads or channels one after the other"
_WIDE_NORM = "it normalizes the queries of all heads together, so that no head can go without a change in the others"
_FIXED_FFN = "its config has no key for the number of channels"


def _llama_like(
    *flags: str, ffn: tuple[str, ...] = _GATED_FFN, blocks: str = "model.layers", fused_ffn: bool = False, **more: Any
) -> Family:
    """flags: which of attention_bias (q, k, v, o), mlp_bias (the FFN) and use_bias (all) the class reads from its config;
    more: further fields of the row."""
    attention = (*_SELF_QKV, _SELF_OUT)
    linears = {"attention_bias": attention, "mlp_bias": ffn, "use_bias": (*attention, *ffn)}
    fields = {"bias_flags": {flag: linears[flag] for flag in flags}} | more
    return Family(
        blocks=blocks,
        qkv=_SELF_QKV,
        out_proj=_SELF_OUT,
        ffn_in=ffn[:-1],
        ffn_out=ffn[-1],
        fused_ffn=fused_ffn,
        **fields,
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
        qkv_rows="heads",
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
    "olmo": _llama_like("attention_bias"),
    "olmo2": _llama_like("attention_bias", whole_parts_refused=_WIDE_NORM),
    "olmo3": _llama_like("attention_bias", windows="listed", whole_parts_refused=_WIDE_NORM),
    "smollm3": _llama_like("attention_bias", "mlp_bias", windows="listed"),
    "granite": _llama_like("attention_bias", "mlp_bias"),
    "cohere": _llama_like("attention_bias"),
    "cohere2": _llama_like("attention_bias", windows="listed"),
    "stablelm": _llama_like(bias_flags={"use_qkv_bias": _SELF_QKV}, free_head_dim=False),
    "starcoder2": _llama_like(
        "use_bias",
        ffn=("mlp.c_fc", "mlp.c_proj"),
        native_biases=(*_SELF_QKV, _SELF_OUT, "mlp.c_fc", "mlp.c_proj"),
        windows="every",
    ),
    "nemotron": _llama_like("attention_bias", "mlp_bias", ffn=_PLAIN_FFN),
    "ministral": _llama_like(windows="listed"),
    "ministral3": _llama_like(windows="every"),
    "apertus": _llama_like("attention_bias", ffn=_PLAIN_FFN),
    "arcee": _llama_like("attention_bias", "mlp_bias", ffn=_PLAIN_FFN),
    "seed_oss": _llama_like(
        bias_flags={"attention_bias": _SELF_QKV, "attention_out_bias": (_SELF_OUT,), "mlp_bias": _GATED_FFN}
    ),
    "ernie4_5": _llama_like("use_bias"),
    "hunyuan_v1_dense": _llama_like("attention_bias"),
    "helium": _llama_like(
        bias_flags={"attention_bias": _SELF_QKV, "mlp_bias": _GATED_FFN}, free_head_dim=False
    ),
    "exaone4": _llama_like(windows="listed"),
    "jais2": _llama_like("attention_bias", "mlp_bias", ffn=_PLAIN_FFN),
    "vaultgemma": _llama_like("attention_bias", windows="listed"),
    "nanochat": _llama_like("attention_bias", ffn=("mlp.fc1", "mlp.fc2")),
    "cwm": _llama_like("mlp_bias", windows="listed"),
    "glm": _llama_like(
        ffn=_FUSED_GATE, fused_ffn=True, bias_flags={"attention_bias": _SELF_QKV}, whole_parts_refused=_FUSED
    ),
    "glm4": _llama_like(
        ffn=_FUSED_GATE, fused_ffn=True, bias_flags={"attention_bias": _SELF_QKV}, whole_parts_refused=_FUSED
    ),
    "phi3": Family(
        blocks="model.layers",
        qkv=("self_attn.qkv_proj",),
        out_proj=_SELF_OUT,
        ffn_in=_FUSED_GATE[:1],
        ffn_out=_FUSED_GATE[1],
        qkv_rows="parts",
        fused_ffn=True,
        windows="every",
        whole_parts_refused=_FUSED,
    ),
    "minicpm3": Family(
        blocks="model.layers",
        qkv=_LATENT,
        out_proj=_SELF_OUT,
        ffn_in=_GATED_FFN[:2],
        ffn_out=_GATED_FFN[2],
        qkv_rows="latent",
        bias_flags={
            "attention_bias": ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa", _SELF_OUT),
            "mlp_bias": _GATED_FFN,
        },
        head_dim_key="v_head_dim",
        whole_parts_refused="its heads share the low-rank factors of queries, keys and values",
    ),
    "gptj": Family(
        blocks="transformer.h",
        qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
        out_proj="attn.out_proj",
        ffn_in=("mlp.fc_in",),
        ffn_out="mlp.fc_out",
        native_biases=("mlp.fc_in", "mlp.fc_out"),
        ffn_width="n_inner",
        free_head_dim=False,
        output_in_tuple=True,
    ),
    "gpt_neo": Family(
        blocks="transformer.h",
        qkv=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
        out_proj="attn.attention.out_proj",
        ffn_in=("mlp.c_fc",),
        ffn_out="mlp.c_proj",
        native_biases=("attn.attention.out_proj", "mlp.c_fc", "mlp.c_proj"),
        free_head_dim=False,
        packs=False,  # its windows are buffers of the blocks, which know nothing of other positions
        output_in_tuple=True,
    ),
    "persimmon": Family(
        blocks="model.layers",
        qkv=("self_attn.query_key_value",),
        out_proj="self_attn.dense",
        ffn_in=("mlp.dense_h_to_4h",),
        ffn_out="mlp.dense_4h_to_h",
        qkv_rows="heads",
        native_biases=("self_attn.query_key_value", "self_attn.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        free_head_dim=False,
    ),
    "bloom": Family(
        blocks="transformer.h",
        qkv=("self_attention.query_key_value",),
        out_proj="self_attention.dense",
        ffn_in=("mlp.dense_h_to_4h",),
        ffn_out="mlp.dense_4h_to_h",
        qkv_rows="heads",
        native_biases=(
            "self_attention.query_key_value",
            "self_attention.dense",
            "mlp.dense_h_to_4h",
            "mlp.dense_4h_to_h",
        ),
        ffn_width="",
        free_head_dim=False,
        whole_parts_refused=_FIXED_FFN,
        packs=False,  # ALiBi takes its distances from the mask, which says only what is padding
        output_in_tuple=True,
    ),
    "mpt": Family(
        blocks="transformer.blocks",
        qkv=("attn.Wqkv",),
        out_proj="attn.out_proj",
        ffn_in=("ffn.up_proj",),
        ffn_out="ffn.down_proj",
        qkv_rows="parts",
        ffn_width="",
        free_head_dim=False,
        whole_parts_refused=_FUSED,
        packs=False,  # ALiBi counts distances along the line
        output_in_tuple=True,
    ),
    "falcon": Family(
        blocks="transformer.h",
        qkv=("self_attention.query_key_value",),
        out_proj="self_attention.dense",
        ffn_in=("mlp.dense_h_to_4h",),
        ffn_out="mlp.dense_4h_to_h",
        qkv_rows="groups",
        bias_flags={
            "bias": (
                "self_attention.query_key_value",
                "self_attention.dense",
                "mlp.dense_h_to_4h",
                "mlp.dense_4h_to_h",
            )
        },
        ffn_width="ffn_hidden_size",
        free_head_dim=False,
        kv_heads_key="num_kv_heads",
        whole_parts_refused=_FUSED,
        packs=False,  # with ALiBi it takes distances from the mask
        output_in_tuple=True,
    ),
    # The text part of a model of pictures and text; what is outside of its blocks is carried along as it is.
    "gemma3": _llama_like(
        "attention_bias",
        windows="listed",
        blocks="model.language_model.layers",
        stored_blocks="language_model.model.layers",
        whole_parts_refused="their text part shares its width with the part that sees",
    ),
}

# What a config calls the number of experts of a layer, by family.
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def text_config(config: Any) -> Any:
    """The config of the decoder: of a model of text itself, of a model of pictures and text the part that says text."""
    return config.get_text_config(decoder=True)


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
    """(layer, name in a checkpoint, Linear) of every linear layer that pruning targets, in forward order."""
    family = family_of(model)
    for layer, block in enumerate(blocks_of(model)):
        for path in family.linears:
            yield layer, f"{family.stored}.{layer}.{path}", linear_of(block, path)


def head_layout(model: PreTrainedModel) -> HeadLayout:
    """L, H, D of a model; D = o_proj.in_features / num_attention_heads, the same in every layer or BadInput."""
    heads = text_config(model.config).num_attention_heads
    widths = sorted({projection.in_features for projection in out_projections(model)})
    if len(widths) != 1 or widths[0] % heads:
        raise BadInput(f"out-projections with {widths} inputs do not split evenly into {heads} heads in every layer")
    return HeadLayout(len(out_projections(model)), heads, widths[0] // heads)


def kv_heads(model: PreTrainedModel) -> int:
    """Key/value heads of a layer; query heads share one in groups of H / KV neighbours."""
    return kv_heads_of_config(model.config)


def kv_heads_of_config(config: Any) -> int:
    """The same, told by a config."""
    text = text_config(config)
    return getattr(text, family_of_config(config).kv_heads_key, None) or text.num_attention_heads


def layout_of_config(config: Any) -> HeadLayout:
    """L, H, D told by a config alone."""
    family, text = family_of_config(config), text_config(config)
    heads = text.num_attention_heads
    own = getattr(text, family.head_dim_key, None) if family.free_head_dim else None
    return HeadLayout(text.num_hidden_layers, heads, own or text.hidden_size // heads)


def ffn_width_of_config(config: Any) -> int:
    """Channels of a block's FFN, told by a config alone."""
    text = text_config(config)
    key = family_of_config(config).ffn_width
    return (getattr(text, key, None) if key else None) or 4 * text.hidden_size


def check_whole_parts(config: Any, what: str) -> None:
    """Raises BadInput for a family whose heads and channels cannot be removed as wholes; what: who asks for it."""
    family = family_of_config(config)
    if family.whole_parts_refused is not None:
        raise BadInput(
            f"{what} removes whole heads and channels, which {config.model_type!r} models do not allow: "
            f"{family.whole_parts_refused}; prune single weights instead (for example wanda-0.5)"
        )
