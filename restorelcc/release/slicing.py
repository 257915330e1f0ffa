"""Cut removed heads and FFN channels out of a model: from zeros that cost time and space to a smaller stock model.

Letters: H query heads, D head dim, G removable head groups, O output features, I input features, C channels.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from restorelcc.base.errors import BadInput
from restorelcc.models.architectures import blocks_of, family_of, ffn_width_of_config, linear_of
from restorelcc.sparsity.structure import HeadGroups, head_groups, removed_parts

# The same computation where no linear has a bias, in a class that takes any number of heads: its model_type, and what
# its config needs in addition to the keys that both have.
_SAME_WITHOUT_BIASES: dict[str, tuple[str, dict[str, Any]]] = {"llama": ("mistral", {"sliding_window": None})}
# Keys of these configs that say nothing of a model without biases.
_ABOUT_BIASES = ("attention_bias", "mlp_bias", "pretraining_tp")


@dataclass(frozen=True)
class Slicing:
    """What a sliced model keeps of every block, as indices in order, and the config that says so."""

    config: PretrainedConfig
    groups: HeadGroups
    head_groups_kept: list[Tensor]
    channels_kept: list[Tensor]

    @property
    def heads(self) -> int:
        """H, query heads of every layer."""
        return len(self.head_groups_kept[0]) * self.groups.query_heads_each

    @property
    def channels(self) -> int:
        """C, channels of every layer's FFN."""
        return len(self.channels_kept[0])


@dataclass(frozen=True)
class BlockCut:
    """What one block keeps: columns of the out-projection, rows of query, key and value, and channels of the FFN."""

    out_columns: Tensor
    qkv_rows: list[Tensor | None]
    channels: Tensor


def plan_slicing(model: PreTrainedModel, *, same_class: bool = False) -> Slicing:
    """What can be cut out of a model, found by its zeros. Only weights are read, and nothing is changed.

    A config states one number of heads and channels for all layers, so every layer keeps as many as the one that needs
    most; layers that need fewer keep some of their zeros. A Llama takes only as many heads as divide its hidden size:
    without biases it becomes the equivalent Mistral, which takes any number; with them, or where `same_class` wants it
    to stay what it is, some more heads are kept with their zeros. Raises BadInput when nothing can be cut out, or when
    the class cannot express the result.
    """
    groups, family, width = head_groups(model), family_of(model), _ffn_width(model)
    heads_gone = _removed(model, family.out_proj, groups.out_columns())
    channels_gone = _removed(model, family.ffn_out, torch.arange(width)[:, None])
    needed, channels = (max(1, *(int((~gone).sum()) for gone in parts)) for parts in (heads_gone, channels_gone))
    if needed == groups.count and channels == width:
        raise BadInput(
            "the model has no head and no channel that is removed in every layer: there is nothing to cut out"
        )
    if needed < groups.count:
        _check_heads_can_go(model)
    kept, config = _smallest_config(model, groups, needed, channels, same_class=same_class)
    if kept == groups.count and channels == width:
        raise BadInput(
            f"every layer could do with {needed * groups.query_heads_each} of its {groups.query_heads} heads, but no "
            f"number from there to {groups.query_heads} is one that a {model.config.model_type!r} model of hidden size "
            f"{model.config.hidden_size} may have: keep the model with its zeros, or remove more heads"
        )
    heads_kept = [_kept_first(gone_G, kept) for gone_G in heads_gone]
    return Slicing(config, groups, heads_kept, [_kept_first(gone_C, channels) for gone_C in channels_gone])


def sliced(model: PreTrainedModel, *, same_class: bool = False) -> PreTrainedModel:
    """A smaller stock model with equal logits: heads and channels that nothing reads are not in it.

    `plan_slicing` says what is kept and which class the result has, and also raises its BadInput. Biases are cut
    with their rows. The model given is not changed, and shares no memory with the result.
    """
    slicing = plan_slicing(model, same_class=same_class)
    whole: dict[str, Tensor] = model.state_dict()
    state: dict[str, Tensor] = {}
    for layer, (heads, channels) in enumerate(zip(slicing.head_groups_kept, slicing.channels_kept, strict=True)):
        state |= _cut_tensors(model, layer, _cut(slicing.groups, heads, channels), whole)
    state |= {name: tensor.clone() for name, tensor in whole.items() if name not in state}
    with init_empty_weights(include_buffers=False):
        smaller = AutoModelForCausalLM.from_config(slicing.config, dtype=model.dtype, trust_remote_code=False)
    _match_biases(smaller, state)
    smaller.load_state_dict(state, assign=True)
    smaller.tie_weights()
    smaller.generation_config = copy.deepcopy(model.generation_config)
    return smaller.to(model.device).eval().requires_grad_(False)


def _removed(model: PreTrainedModel, path: str, columns_GX: Tensor) -> list[Tensor]:
    """Per block, True for the parts that nothing reads; bool [G]."""
    return [removed_parts(linear_of(block, path).weight, columns_GX).cpu() for block in blocks_of(model)]


def _ffn_width(model: PreTrainedModel) -> int:
    return ffn_width_of_config(model.config)


def _check_heads_can_go(model: PreTrainedModel) -> None:
    kind = model.config.model_type
    if not family_of(model).free_head_dim:
        raise BadInput(
            f"heads cannot be cut out of {kind!r} models: their class computes the head dim as hidden size / heads, so "
            "fewer heads would mean wider ones; keep the model with its zeros"
        )
    if getattr(model.config, "qk_layernorm", False) or getattr(model.config, "use_qk_norm", False):
        raise BadInput(
            f"heads cannot be cut out of {kind!r} models that normalize queries and keys: the norm's weights are not "
            "cut along; keep the model with its zeros"
        )


def _smallest_config(
    model: PreTrainedModel, groups: HeadGroups, needed: int, channels: int, *, same_class: bool
) -> tuple[int, PretrainedConfig]:
    """The fewest head groups, at least `needed`, that the class or its equivalent takes, and the config with them."""
    for kept in range(needed, groups.count + 1):
        config = _smaller_config(model, groups, kept, channels)
        if _is_legal(config):
            return kept, config
        if not same_class and (other := _same_without_biases(model, config)):
            return kept, other
    raise BadInput(f"the config of the {model.config.model_type!r} model is refused by its own class")


def _smaller_config(model: PreTrainedModel, groups: HeadGroups, kept: int, channels: int) -> PretrainedConfig:
    config = copy.deepcopy(model.config)
    if family_of(model).free_head_dim:
        config.head_dim = groups.head_dim  # where it was hidden size / heads, it must now be said
    config.num_attention_heads = kept * groups.query_heads_each
    if hasattr(config, "num_key_value_heads") and groups.kv_heads > 1:
        config.num_key_value_heads = kept * (groups.kv_heads // groups.count)
    setattr(config, family_of(model).ffn_width, channels)
    return config


def _is_legal(config: PretrainedConfig) -> bool:
    try:
        config.validate()
    except (StrictDataclassError, ValueError):
        return False
    return True


def _same_without_biases(model: PreTrainedModel, config: PretrainedConfig) -> PretrainedConfig | None:
    """The config of the equivalent class; None where there is none, or where a linear of a block has a bias."""
    blocks = f"{family_of(model).blocks}."
    biased = any(name.startswith(blocks) and name.endswith(".bias") for name in model.state_dict())
    if biased or config.model_type not in _SAME_WITHOUT_BIASES:
        return None
    kind, more = _SAME_WITHOUT_BIASES[config.model_type]
    dropped = ("model_type", "architectures", *_ABOUT_BIASES)
    keys = {key: value for key, value in config.to_dict().items() if key not in dropped}
    other = AutoConfig.for_model(kind, **keys | more)
    other._attn_implementation = config._attn_implementation  # not one of a config's keys
    return other if _is_legal(other) else None


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
                tensors[name] = state[name][kept_rows.to(state[name].device)]
    return tensors


def _match_biases(model: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Give linears a bias where the weights have one that the class does not make (a folded compensation)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.bias is None and f"{name}.bias" in state:
            module.bias = nn.Parameter(torch.empty_like(state[f"{name}.bias"], device="meta"), requires_grad=False)
