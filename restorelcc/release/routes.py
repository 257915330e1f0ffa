"""How a stock checkpoint carries a compensation: the class it is written as, and what each of its biases carries.

Letters: L layers, H heads, G key/value heads, D head dim, X = H*D.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from restorelcc.base.errors import BadInput
from restorelcc.compensation.compensation import Compensation, Site, checked
from restorelcc.models.architectures import (
    FAMILIES,
    Family,
    family_of_config,
    kv_heads_of_config,
    layout_of_config,
    text_config,
)
from restorelcc.models.biases import LLAMA_EQUIVALENTS, biased_linears, llama_config, why_not_llama
from restorelcc.models.heads import HeadLayout

_ALTERNATIVE = (
    "keep the pruned checkpoint and its compensation file, and load them with restorelcc.attach(model, file), which "
    "gives the same logits in memory"
)


@dataclass(frozen=True)
class Route:
    """What is written: a config, and the compensation as that class carries it.

    `biased`: paths of the linears that have a bias in every block of the written checkpoint; those that nothing is
    folded into keep the bias they have, or get zeros.
    """

    name: str
    config: PretrainedConfig
    compensation: Compensation
    biased: tuple[str, ...]
    relabelled_from: str | None = None

    @property
    def family(self) -> Family:
        return family_of_config(self.config)


def plan_route(config: PretrainedConfig, compensation: Compensation | Tensor, layout: HeadLayout) -> Route:
    """The first exact route: the class's own biases, the equivalent Llama class, or the bias of v_proj.

    Raises BadInput, with the reason and the alternative, when there is none.
    """
    family = family_of_config(config)
    compensation = checked(compensation, family, layout)
    if all(family.bias_route(path) != "none" for path in compensation.linears(family)):
        return _own_biases(config, compensation)
    reasons = []
    if config.model_type in LLAMA_EQUIVALENTS:
        reason = why_not_llama(config)
        if reason is None:
            return _as_llama(config, compensation, layout)
        reasons.append(reason)
    moved = _on_values(config, compensation, layout)
    if isinstance(moved, Compensation):
        route = _own_biases(config, moved)
        return Route("v_proj.bias", route.config, route.compensation, route.biased)
    raise BadInput(_refusal(config, compensation, [*reasons, moved]))


def check_route(config: PretrainedConfig, paths: Sequence[str] = (), *, heads: bool = True) -> Route:
    """The route of offsets of heads, and of biases on the linears of these paths, whatever training finds.

    Raises BadInput where no stock checkpoint of this config could carry them, told before hours of training. An offset
    of its own for every head stands for the one to come.
    """
    layout = layout_of_config(config)
    numbers_H = torch.arange(1.0, layout.heads + 1) * heads
    offset_LHD = torch.ones(layout.layers, layout.heads, layout.head_dim) * numbers_H[None, :, None]
    return plan_route(config, Compensation(offset_LHD, {Site(0, path): torch.ones(1) for path in paths}), layout)


def carried_by(config: PretrainedConfig) -> str:
    """In words, how a restored model of this config is kept: the route of a stock checkpoint, or the file that is left
    where there is none, with the reason."""
    try:
        return f"a stock checkpoint ({check_route(config).name})"
    except BadInput as error:
        return f"the compensation file, for restorelcc.attach: {error}"


def _own_biases(config: PretrainedConfig, compensation: Compensation) -> Route:
    family = family_of_config(config)
    touched = compensation.linears(family)
    flags = {family.bias_flag(path) for path in touched if family.bias_flag(path) is not None}
    written = copy.deepcopy(config)
    turned_on = sorted(flag for flag in flags if flag and not getattr(text_config(config), flag))
    for flag in turned_on:
        setattr(text_config(written), flag, True)
    name = f"own biases, with {', '.join(turned_on)} turned on" if turned_on else "own biases"
    return Route(name, written, compensation, biased_linears(written))


def _as_llama(config: PretrainedConfig, compensation: Compensation, layout: HeadLayout) -> Route:
    written = llama_config(config)
    family, own = FAMILIES["llama"], biased_linears(config)
    needed = {*compensation.linears(family), *own}
    for flag, paths in family.bias_flags.items():
        setattr(written, flag, any(path in needed for path in paths))
    fitted = checked(compensation, family, layout)
    return Route(f"{config.model_type} written as llama", written, fitted, biased_linears(written), config.model_type)


def _on_values(config: PretrainedConfig, compensation: Compensation, layout: HeadLayout) -> Compensation | str:
    """The head offsets moved to v_proj's bias, or why that cannot be.

    The weights of attention sum to 1, so a constant on the values of a key/value head appears unchanged in the output
    of every query head that reads it: exact when these heads have one offset in common.
    """
    family = family_of_config(config)
    rest = {site.linear for site in compensation.sites if family.bias_route(site.linear) == "none"}
    if rest:
        return f"its class has no bias on {', '.join(sorted(rest))}"
    values = family.qkv[-1]
    if len(family.qkv) != 3 or family.bias_route(values) == "none":
        return f"its class has no bias on {values} either"
    groups = kv_heads_of_config(config)
    offset_LGHD = compensation.offset_LHD.unflatten(1, (groups, layout.heads // groups))
    shared_LGD = offset_LGHD[:, :, 0]
    if not bool((offset_LGHD == shared_LGD[:, :, None]).all()):
        return (
            f"the bias of {values} can carry a compensation only when all query heads that share a key/value head "
            "have the same offset, which is not the case here"
        )
    sites = dict(compensation.sites)
    for layer in compensation.head_layers():
        site = Site(layer, values)
        own_X = shared_LGD[layer].flatten().float()
        sites[site] = own_X + sites[site].float() if site in sites else own_X
    return Compensation(compensation.offset_LHD.new_zeros(compensation.offset_LHD.shape), sites)


def _refusal(config: PretrainedConfig, compensation: Compensation, reasons: list[str]) -> str:
    family = family_of_config(config)
    missing = [path for path in compensation.linears(family) if family.bias_route(path) == "none"]
    return (
        f"no stock {config.model_type!r} checkpoint can carry this compensation exactly: its class has no bias on "
        f"{', '.join(missing)}; {'; '.join(reasons)}. Instead, {_ALTERNATIVE}"
    )
