"""Cut removed heads and FFN channels out of a model: from zeros that cost time and space to a smaller stock model.

Letters: H query heads, D head dim, O output features, I input features, C channels.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.core.architectures import blocks_of, family_of, linear_of
from restorelcc.core.errors import BadInput
from restorelcc.core.structure import HeadGroups, head_groups, removed_parts


@dataclass(frozen=True)
class BlockCut:
    """What one block keeps: columns of the out-projection, rows of query, key and value, and channels of the FFN."""

    out_columns: Tensor
    qkv_rows: list[Tensor | None]
    channels: Tensor


def sliced(model: PreTrainedModel) -> PreTrainedModel:
    """A smaller model of the same class with equal logits: heads and channels that nothing reads are not in it.

    A config states one number of heads and channels for all layers, so every layer keeps as many as the one that needs
    most; layers that need fewer keep some of their zeros. Biases go with their rows. The model given is not changed.
    Raises BadInput when nothing can be cut out, or when the class cannot express the result.
    """
    groups, family, width = head_groups(model), family_of(model), _ffn_width(model)
    heads_gone = _removed(model, family.out_proj, groups.out_columns())
    channels_gone = _removed(model, family.ffn_out, torch.arange(width)[:, None])
    kept, channels = (max(1, *(int((~gone).sum()) for gone in parts)) for parts in (heads_gone, channels_gone))
    if kept == groups.count and channels == width:
        raise BadInput(
            "the model has no head and no channel that is removed in every layer: there is nothing to cut out"
        )
    if kept < groups.count:
        _check_heads_can_go(model)
    smaller = _empty(model, groups, kept, channels)
    state = model.state_dict()
    for layer, (heads_G, channels_C) in enumerate(zip(heads_gone, channels_gone, strict=True)):
        cut = _cut(groups, _kept_first(heads_G, kept), _kept_first(channels_C, channels))
        state |= _cut_tensors(model, layer, cut, state)
    _match_biases(smaller, state)
    smaller.load_state_dict(state)
    return smaller.eval().requires_grad_(False)


def _removed(model: PreTrainedModel, path: str, columns_GX: Tensor) -> list[Tensor]:
    """Per block, True for the parts that nothing reads; bool [G]."""
    return [removed_parts(linear_of(block, path).weight.cpu(), columns_GX) for block in blocks_of(model)]


def _ffn_width(model: PreTrainedModel) -> int:
    return getattr(model.config, family_of(model).ffn_width)


def _check_heads_can_go(model: PreTrainedModel) -> None:
    kind = model.config.model_type
    if not family_of(model).free_head_dim:
        raise BadInput(
            f"heads cannot be cut out of {kind!r} models: their class takes the head dim to be hidden size / heads, so "
            "fewer heads would mean wider ones; keep the model with its zeros"
        )
    if getattr(model.config, "qk_layernorm", False):
        raise BadInput(
            f"heads cannot be cut out of {kind!r} models with qk_layernorm: its width is hidden size / heads; keep the "
            "model with its zeros"
        )


def _kept_first(removed_G: Tensor, count: int) -> Tensor:
    """The parts to keep, in order: all that are not removed, and removed ones up to `count`."""
    order = torch.argsort(removed_G.int(), stable=True)
    return order[:count].sort().values


def _cut(groups: HeadGroups, heads: Tensor, channels: Tensor) -> BlockCut:
    rows = [None if rows_GX is None else rows_GX[heads].flatten() for rows_GX in groups.rows()]
    return BlockCut(groups.out_columns()[heads].flatten(), rows, channels)


def _cut_tensors(model: PreTrainedModel, layer: int, cut: BlockCut, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The block's tensors that get smaller, by full name."""
    family = family_of(model)
    prefix = f"{family.blocks}.{layer}."
    columns = {family.out_proj: cut.out_columns, family.ffn_out: cut.channels}
    rows = dict(zip(family.qkv, cut.qkv_rows, strict=True)) | dict.fromkeys(family.ffn_in, cut.channels)
    tensors = {}
    for path, kept in columns.items():
        weight_OI = state[f"{prefix}{path}.weight"]
        tensors[f"{prefix}{path}.weight"] = weight_OI[:, kept.to(weight_OI.device)].contiguous()
    for path, kept_rows in rows.items():
        for leaf in ("weight", "bias"):
            name = f"{prefix}{path}.{leaf}"
            if kept_rows is not None and name in state:
                tensors[name] = state[name][kept_rows.to(state[name].device)].contiguous()
    return tensors


def _empty(model: PreTrainedModel, groups: HeadGroups, kept: int, channels: int) -> PreTrainedModel:
    """A model of the same class, dtype and device with fewer heads and channels; its weights are yet to be filled."""
    config = copy.deepcopy(model.config)
    config.head_dim = groups.head_dim  # where it was hidden size / heads, it must now be said
    config.num_attention_heads = kept * groups.query_heads_each
    if hasattr(config, "num_key_value_heads") and groups.kv_heads > 1:
        config.num_key_value_heads = kept * (groups.kv_heads // groups.count)
    setattr(config, family_of(model).ffn_width, channels)
    make: Any = type(model)
    smaller = make(config).to(device=model.device, dtype=model.dtype)
    smaller.generation_config = copy.deepcopy(model.generation_config)
    return smaller


def _match_biases(model: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Give linears a bias where the weights have one that the class does not make (a folded compensation)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.bias is None and f"{name}.bias" in state:
            module.bias = nn.Parameter(state[f"{name}.bias"].clone(), requires_grad=False)
