"""What a config tells of a model by itself: its row in the table of families, its layers, heads and widths.

Nothing here imports torch, so that a checkpoint can be looked at without it.
"""

from __future__ import annotations

from typing import Any

from restorelcc.base.errors import BadInput
from restorelcc.models.config_check import is_whole
from restorelcc.models.config_names import EXPERT_COUNTS
from restorelcc.models.families import FAMILIES
from restorelcc.models.family import Family
from restorelcc.models.heads import HeadLayout

# What config.layer_types calls layers with heads; others are linear attention, convolutions or state spaces.
WITH_HEADS = ("full_attention", "sliding_attention", "hybrid")

_FIND = (
    "run `restorelcc inspect --family DIR`, which finds and proves its row, and add a row to "
    "restorelcc/models/families.py (CONTRIBUTING.md has the recipe)"
)


def text_config(config: Any) -> Any:
    """The config of the decoder: of a model of text itself, of a model of pictures and text the part that says text."""
    return config.get_text_config(decoder=True)


def family_of_config(config: Any) -> Family:
    """The table's row for a checkpoint's config. Raises BadInput for an unknown family, listing the known ones."""
    kind = config.model_type
    found = FAMILIES.get(kind)
    if (found is None or not found.experts) and _has_experts(config):
        known = ", ".join(name for name, family in FAMILIES.items() if family.experts)
        raise BadInput(
            f"model family {kind!r} is a mixture of experts that is not supported: known are {known}; use one of "
            f"these or a dense model, or {_FIND}"
        )
    if found is None:
        raise BadInput(f"model family {kind!r} is not supported: known are {', '.join(FAMILIES)}; to add one, {_FIND}")
    return found


def _has_experts(config: Any) -> bool:
    """Whether a layer has several: some dense models count their one FFN as an expert."""
    counts: list[Any] = [getattr(config, key, None) for key in EXPERT_COUNTS]
    return any(is_whole(count) and count > 1 for count in counts)


def context_of_config(config: Any) -> int | None:
    """The most tokens that a sequence may have, under the names that classes have for it; None where a config names
    none (Bloom, which weighs positions by their distance alone)."""
    text = text_config(config)
    return getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)


def kv_heads_of_config(config: Any) -> int:
    """Key/value heads of a layer, told by a config; query heads share one in groups of H / KV neighbours."""
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
