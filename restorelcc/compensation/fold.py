"""Fold a compensation into biases: exact, and free at inference.

Letters: L layers, H heads, D head dim, X = H*D, M model width, O output features of a linear.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.base.errors import BadInput
from restorelcc.compensation.compensation import Compensation, Site, check_width, checked
from restorelcc.models.architectures import (
    all_blocks,
    blocks_of,
    family_of,
    head_layout,
    linear_of,
    linears_of,
    text_config,
)
from restorelcc.models.placement import at_hand, set_bias


def folded_bias(weight_MX: Tensor, offset_X: Tensor) -> Tensor:
    """bias_M = W_O @ concat_h(c_h). RestoreLCC section 3.3 (eq. 8 at inference).

    W_O (z + c) = W_O z + W_O c. weight_MX [M, X], offset_X [X]; computed and returned in float32.
    """
    return weight_MX.float() @ offset_X.float()


def with_addition(bias_O: Tensor | None, addition_O: Tensor, dtype: torch.dtype) -> Tensor:
    """bias + addition, summed in float32 and cast last. Raises BadInput where the dtype does not hold it."""
    total_O = addition_O.float()
    if bias_O is not None:
        total_O = total_O + bias_O.float()
    cast_O = total_O.to(dtype)
    if total_O.isfinite().all() and not cast_O.isfinite().all():
        raise BadInput(
            f"a bias of {float(total_O.abs().max()):.3g} is more than {str(dtype).removeprefix('torch.')} holds: train "
            "the compensation with lower learning rates, or give the checkpoint in bfloat16 or float32"
        )
    return cast_O


@torch.no_grad()
def fold(model: PreTrainedModel, compensation: Compensation | Tensor) -> None:
    """Add a compensation (or a head offset [L, H, D]) to the model in place as biases; no weight is touched.

    For every linear that it reaches, its part is added to the bias; other biases keep their bits. Where the class reads
    a bias only with a key of its config (attention_bias, mlp_bias), the key is set and the linears that it covers get
    zero biases, so that save_pretrained writes a checkpoint which loads with the same logits. Linears that the class
    never gives a bias get one in memory only: `check_class_carries` refuses those before a checkpoint is written.
    Raises BadInput when the compensation does not fit the model.
    """
    family = family_of(model)
    compensation = checked(compensation, family, head_layout(model))
    for site, linear, addition_O in bias_additions(model, compensation):
        _turn_flag_on(model, site.linear)
        with at_hand(linear):
            bias_O = with_addition(linear.bias, addition_O, linear.weight.dtype)
        set_bias(linear, bias_O)


def bias_additions(model: PreTrainedModel, compensation: Compensation) -> Iterator[tuple[Site, nn.Linear, Tensor]]:
    """(site, linear, addition [O] in float32) of every linear whose bias changes, in forward order."""
    family, layout = family_of(model), head_layout(model)
    for layer, block in enumerate(blocks_of(model)):
        for path in family.linears:
            site = Site(layer, path)
            if compensation.reaches(site, family):
                linear = linear_of(block, path)
                offset_X = compensation.head_offset(site, family, layout)
                with at_hand(linear):
                    addition_O = addition(linear.weight, offset_X, site, compensation.sites.get(site))
                yield site, linear, addition_O


def addition(weight_OI: Tensor, offset_I: Tensor | None, site: Site, value_O: Tensor | None) -> Tensor:
    """W c + s in float32, [O]: what is added to a linear's bias. Raises BadInput when s has another width."""
    outputs = weight_OI.shape[0]
    if value_O is not None:
        check_width(site, value_O, outputs)
    total_O = torch.zeros(outputs, device=weight_OI.device)
    if offset_I is not None:
        total_O = folded_bias(weight_OI, offset_I.to(weight_OI.device))
    return total_O if value_O is None else total_O + value_O.to(total_O)


def check_class_carries(model: PreTrainedModel, compensation: Compensation) -> None:
    """Raises BadInput, with reason and alternative, when the model's class has no bias on a compensated linear.

    Such a model computes the right thing in memory, but its checkpoint silently loses these biases when it is loaded.
    """
    family = family_of(model)
    compensation = checked(compensation, family, head_layout(model))
    missing = [path for path in compensation.linears(family) if family.bias_route(path) == "none"]
    if missing:
        raise BadInput(
            f"a {model.config.model_type!r} checkpoint cannot carry a bias on {', '.join(missing)}, and transformers "
            "would silently drop it on loading: use `restorelcc export`, which writes an equivalent class where there "
            "is one, or keep the compensation file and restorelcc.attach(model, file)"
        )


def _turn_flag_on(model: PreTrainedModel, wanted: str) -> None:
    """Set the config's key for biases on `wanted`, and give every linear that the key covers a zero bias."""
    family = family_of(model)
    flag = family.bias_flag(wanted)
    if flag is None or getattr(text_config(model.config), flag):
        return
    setattr(text_config(model.config), flag, True)
    for block in all_blocks(model):
        for path, linear in linears_of(block, family):
            if path in family.bias_flags[flag] and linear.bias is None:
                with at_hand(linear):
                    zeros = torch.zeros(linear.out_features, dtype=linear.weight.dtype, device=linear.weight.device)
                set_bias(linear, zeros)
