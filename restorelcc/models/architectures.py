"""A model's place in the table of families (families.py): its blocks, linears and heads, and what its config tells.

Letters: L layers (blocks that have heads), H query heads, D head dim, X = H*D, M model width.
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
from restorelcc.models.transposed import with_linears

# What a config calls the number of experts of a layer, by family.
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
# What config.layer_types calls layers with heads; others are linear attention, convolutions or state spaces.
WITH_HEADS = ("full_attention", "sliding_attention", "hybrid")


def text_config(config: Any) -> Any:
    """The config of the decoder: of a model of text itself, of a model of pictures and text the part that says text."""
    return config.get_text_config(decoder=True)


def family_of_config(config: Any) -> Family:
    """The table's row for a checkpoint's config. Raises BadInput for an unknown family, listing the known ones."""
    kind = config.model_type
    found = FAMILIES.get(kind)
    if (found is None or not found.experts) and any(getattr(config, key, None) for key in _EXPERT_COUNTS):
        known = ", ".join(name for name, family in FAMILIES.items() if family.experts)
        raise BadInput(
            f"model family {kind!r} is a mixture of experts that is not supported: known are {known}; use one of "
            "these, or a dense model"
        )
    if found is None:
        raise BadInput(
            f"model family {kind!r} is not supported: known are {', '.join(FAMILIES)}; "
            "to add one, add a row to restorelcc/models/families.py (CONTRIBUTING.md has the recipe)"
        )
    return found


def family_of(model: PreTrainedModel) -> Family:
    """The table's row for a model. Raises BadInput for an unknown family, listing the known ones."""
    return family_of_config(model.config)


def all_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The model's decoder blocks, in order, those without heads among them."""
    family = family_of(model)
    blocks = model.get_submodule(family.blocks)
    assert isinstance(blocks, nn.ModuleList)
    if family.transposed:
        with_linears(blocks)
    return blocks


def numbered_blocks(model: PreTrainedModel) -> list[tuple[int, nn.Module]]:
    """The L blocks that have heads, each with its number among all blocks."""
    numbered = list(enumerate(all_blocks(model)))
    if not family_of(model).hybrid:
        return numbered
    kinds = text_config(model.config).layer_types
    return [(number, block) for number, block in numbered if kinds[number] in WITH_HEADS]


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    """The model's L decoder blocks that have heads, in order."""
    return [block for _, block in numbered_blocks(model)]


def linear_of(block: nn.Module, path: str) -> nn.Linear:
    """The Linear at a path of the table. Raises BadInput when the model has something else there, or nothing."""
    try:
        module = block.get_submodule(path)
    except AttributeError as error:
        raise BadInput(f"a block of this model has no {path}: name linears that all of its layers have") from error
    module = getattr(module, "base_layer", module)  # with an adapter the Linear is inside
    if not isinstance(module, nn.Linear):
        raise BadInput(f"{path} is a {type(module).__name__}, not a Linear layer: such a model is not supported")
    return module


def linears_of(block: nn.Module, family: Family) -> Iterator[tuple[str, nn.Linear]]:
    """(path, Linear) of a block's linears in forward order. Of families with experts or hybrids, those it has."""
    for path in family.linears:
        if not family.partial or _has(block, path):
            yield path, linear_of(block, path)


def _has(block: nn.Module, path: str) -> bool:
    try:
        block.get_submodule(path)
    except AttributeError:
        return False
    return True


def out_projections(model: PreTrainedModel) -> list[nn.Linear]:
    """The L out-projections (weight [M, X]), in layer order."""
    path = family_of(model).out_proj
    return [linear_of(block, path) for block in blocks_of(model)]


def prunable_linears(model: PreTrainedModel) -> Iterator[tuple[int, str, nn.Linear]]:
    """(block, name in a checkpoint, Linear) of every linear layer that pruning targets, in forward order."""
    family = family_of(model)
    for number, block in numbered_blocks(model):
        for path, linear in linears_of(block, family):
            yield number, f"{family.stored}.{number}.{path}", linear


def head_layout(model: PreTrainedModel) -> HeadLayout:
    """L, H, D of a model; D = o_proj.in_features / num_attention_heads, the same in every layer or BadInput."""
    heads = text_config(model.config).num_attention_heads
    widths = sorted({projection.in_features for projection in out_projections(model)})
    if len(widths) != 1 or widths[0] % heads:
        raise BadInput(f"out-projections with {widths} inputs do not split evenly into {heads} heads in every layer")
    numbers = tuple(number for number, _ in numbered_blocks(model)) if family_of(model).hybrid else None
    return HeadLayout(len(out_projections(model)), heads, widths[0] // heads, numbers)


def kv_heads(model: PreTrainedModel) -> int:
    """Key/value heads of a layer; query heads share one in groups of H / KV neighbours."""
    return kv_heads_of_config(model.config)


def kv_heads_of_config(config: Any) -> int:
    """The same, told by a config."""
    text = text_config(config)
    return getattr(text, family_of_config(config).kv_heads_key, None) or text.num_attention_heads


def layout_of_config(config: Any) -> HeadLayout:
    """L, H, D told by a config alone. Raises BadInput for a hybrid of which no layer has heads."""
    family, text = family_of_config(config), text_config(config)
    heads = text.num_attention_heads
    own = getattr(text, family.head_dim_key, None) if family.free_head_dim else None
    head_dim = own or text.hidden_size // heads
    if not family.hybrid:
        return HeadLayout(text.num_hidden_layers, heads, head_dim)
    numbers = tuple(number for number, kind in enumerate(text.layer_types) if kind in WITH_HEADS)
    if not numbers:
        raise BadInput(f"no layer of this {config.model_type!r} model has attention heads (config.layer_types)")
    return HeadLayout(len(numbers), heads, head_dim, numbers)


def ffn_width_of_config(config: Any) -> int:
    """Channels of a block's FFN, told by a config alone."""
    text = text_config(config)
    key = family_of_config(config).ffn_width
    return (getattr(text, key, None) if key else None) or 4 * text.hidden_size


def check_scores(config: Any, what: str) -> None:
    """Raises BadInput for a family whose weights cannot be pruned here; what: the pruning that asks for it."""
    reason = family_of_config(config).scores_refused
    if reason is not None:
        raise BadInput(
            f"{what} cannot prune {config.model_type!r} models: {reason}; prune such a model elsewhere and give the "
            "result as external-<name>, or to `restorelcc restore --pruned`: its attention heads are restored"
        )


def check_whole_parts(config: Any, what: str) -> None:
    """Raises BadInput for a family whose heads and channels cannot be removed as wholes; what: who asks for it."""
    family = family_of_config(config)
    if family.whole_parts_refused is not None:
        raise BadInput(
            f"{what} removes whole heads and channels, which {config.model_type!r} models do not allow: "
            f"{family.whole_parts_refused}; prune single weights instead (for example wanda-0.5)"
        )
