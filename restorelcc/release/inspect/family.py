"""The row of a model family that the table lacks: found in the modules of a small model of that class, and proved.

Letters: B batch, T tokens, H heads, D head dim, X = H*D, O output features.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from restorelcc.base.errors import BadInput
from restorelcc.compensation.compensation import Compensation
from restorelcc.compensation.fold import fold
from restorelcc.compensation.hooks import compensated
from restorelcc.models.architectures import (
    FAMILIES,
    all_blocks,
    head_layout,
    linear_of,
    out_projections,
    text_config,
)
from restorelcc.models.family import Family
from restorelcc.models.hooks import hooked
from restorelcc.models.transposed import with_linears
from restorelcc.models.walk import first_output, walk_blocks
from restorelcc.release.inspect.guess import empty, guessed, is_hybrid, tokens_of

_LAYERS = 2  # of the model that is looked at and run
_TOLERANCE = 1e-4  # of the largest number of what is compared


@torch.no_grad()
def found_family(config: PretrainedConfig) -> tuple[Family, list[str]]:
    """The row for a config's class, and what was proved of it, by running two layers of it with random weights.

    Raises BadInput, with what does not hold, for a class that no row can describe.
    """
    whole, config = config, _shortened(config, is_hybrid(config))
    model = _random(config)
    family, number = guessed(model)
    _check_alike(whole, family)
    with _registered(config.model_type, family):
        return family, _proofs(model, family, f"{family.blocks}.{number}")


def _check_alike(config: PretrainedConfig, family: Family) -> None:
    """Raises BadInput unless every block of the whole model has the linears of the row, and no others.

    Of hybrids and mixtures of experts, unless the out-projection is in every block that it should be in.
    """
    if family.hybrid or family.experts:
        with _registered(config.model_type, family):
            out_projections(empty(config))
        return
    for layer, block in enumerate(empty(config).get_submodule(family.blocks).children()):
        linears = {path for path, module in block.named_modules() if isinstance(module, nn.Linear)}
        if linears != set(family.linears):
            raise BadInput(f"layer {layer} has other linears than layer 0, as in hybrid models: no row can describe it")


def _shortened(config: PretrainedConfig, hybrid: bool) -> PretrainedConfig:
    """The config with `_LAYERS` layers; lists of one entry a layer are cut with it. Hybrids, and models with experts
    whose first layers have none, stay as long as they are up to the first layers of each kind."""
    config = copy.deepcopy(config)
    text = text_config(config)
    layers = text.num_hidden_layers
    kinds = list(text.layer_types) if hybrid else []
    wanted = max([_LAYERS, *(kinds.index(kind) + 1 for kind in set(kinds))])
    wanted = max(wanted, 1 + int(getattr(text, "first_k_dense_replace", None) or 0))
    for name, value in text.to_dict().items():
        if isinstance(value, list) and len(value) == layers > wanted:
            setattr(text, name, value[:wanted])
    text.num_hidden_layers = min(layers, wanted)
    return config


def _random(config: PretrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        with_linears(model)
        for module in model.modules():
            if isinstance(module, nn.Linear):  # a fresh model's attention hardly tells one token from another
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return model.eval().requires_grad_(False)


@contextmanager
def _registered(kind: str, family: Family) -> Iterator[None]:
    """Inside, the table has the row."""
    known = FAMILIES.get(kind)
    FAMILIES[kind] = family
    try:
        yield
    finally:
        if known is None:
            del FAMILIES[kind]
        else:
            FAMILIES[kind] = known


@torch.no_grad()
def _proofs(model: PreTrainedModel, family: Family, block: str) -> list[str]:
    """What holds of the row. Raises BadInput with what does not."""
    tokens_BT, heads = tokens_of(model), head_layout(model)
    seen: list[Tensor] = []
    blocks = all_blocks(model)

    def keep(_module: nn.Module, _inputs: tuple, output: Any) -> None:
        seen.append(first_output(output))

    with hooked(enumerate(blocks), lambda _layer: keep, expected=len(blocks), after=True):
        plain = model(input_ids=tokens_BT, use_cache=False).logits
    for step, own_BTM in zip(walk_blocks(model, [tokens_BT]), seen, strict=True):
        _must("a block that is run again gives what it gave", step.output(0), own_BTM)
    linear_of(model.get_submodule(block), family.out_proj)
    offset_LHD = torch.randn(heads.layers, heads.heads, heads.head_dim, generator=torch.Generator().manual_seed(1))
    with compensated(model, Compensation(offset_LHD)):
        by_hooks = model(input_ids=tokens_BT, use_cache=False).logits
    if torch.equal(by_hooks, plain):
        raise BadInput("an offset of the heads changes nothing: the out-projection is another linear")
    folded = copy.deepcopy(model)
    fold(folded, offset_LHD)
    _must("a folded compensation equals one by hooks", folded(input_ids=tokens_BT, use_cache=False).logits, by_hooks)
    return [
        f"{len(out_projections(model))} layers looked at, with {heads.heads} heads of {heads.head_dim} numbers",
        "a block that is run again gives what it gave",
        "an offset of the heads changes the logits, and folded into biases it changes them in the same way",
        *([f"rows of {family.qkv[0]} lie by {family.qkv_rows}"] if len(family.qkv) == 1 else []),
    ]


def _must(what: str, found: Tensor, expected: Tensor) -> None:
    if not float((found - expected).abs().max()) <= _TOLERANCE * max(1.0, float(expected.abs().max())):  # or it is NaN
        raise BadInput(f"it does not hold that {what}: this class needs more than a row")


def row_text(kind: str, family: Family) -> str:
    """The row as it would stand in families.py; fields that have their default are left out."""
    default = Family(blocks="", qkv=(), out_proj="")
    fields = {name: getattr(family, name) for name in Family.__dataclass_fields__}
    told = {name: value for name, value in fields.items() if value != getattr(default, name)}
    lines = "".join(f"    {name}={value!r},\n" for name, value in told.items())
    return f"{kind!r}: Family(\n{lines}),"
