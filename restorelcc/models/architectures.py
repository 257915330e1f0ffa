"""A model's place in the table of families (families.py): its blocks, linears and heads, and what its config tells.

Letters: L layers, H query heads, D head dim, X = H*D, M model width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from restorelcc.base.errors import BadInput
from restorelcc.models.families import FAMILIES as FAMILIES
from restorelcc.models.family import BiasRoute as BiasRoute
from restorelcc.models.family import Family as Family
from restorelcc.models.heads import HeadLayout

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
            "to add one, add a row to restorelcc/models/families.py (CONTRIBUTING.md has the recipe)"
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
