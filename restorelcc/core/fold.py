"""Fold a constant head offset into the out-projection's bias: exact, and free at inference.

Letters: L layers, H heads, D head dim, X = H*D, M model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.core.architectures import family_of, head_layout, out_projections, prunable_linears
from restorelcc.core.errors import BadInput


def folded_bias(weight_MX: Tensor, offset_X: Tensor) -> Tensor:
    """bias_M = W_O @ concat_h(c_h). RestoreLCC section 3.3 (eq. 8 at inference).

    W_O (z + c) = W_O z + W_O c. weight_MX [M, X], offset_X [X]; computed and returned in float32.
    """
    return weight_MX.float() @ offset_X.float()


@torch.no_grad()
def fold(model: PreTrainedModel, offset_LHD: Tensor) -> None:
    """Add c [L, H, D] to the model in place as out-projection biases; no weight is touched.

    Families whose class reads out-projection biases only with `config.attention_bias` get that flag, and zero biases
    on q, k and v, so that save_pretrained writes a checkpoint which loads with the same logits. Raises BadInput when
    the shape is another model's.
    """
    layout = head_layout(model)
    if tuple(offset_LHD.shape) != (layout.layers, layout.heads, layout.head_dim):
        raise BadInput(f"a compensation of shape {tuple(offset_LHD.shape)} does not fit a model of {layout}")
    for projection, offset_X in zip(out_projections(model), layout.join(offset_LHD), strict=True):
        weight = projection.weight
        bias_M = folded_bias(weight, offset_X.to(weight.device))
        if projection.bias is not None:
            bias_M = bias_M + projection.bias.float()
        projection.bias = nn.Parameter(bias_M.to(weight.dtype), requires_grad=False)
    if family_of(model).bias == "flag":
        _turn_attention_bias_on(model)


def _turn_attention_bias_on(model: PreTrainedModel) -> None:
    model.config.attention_bias = True
    for _, name, linear in prunable_linears(model):
        if linear.bias is None and name.endswith(("q_proj", "k_proj", "v_proj")):
            zeros = torch.zeros(linear.out_features, dtype=linear.weight.dtype, device=linear.weight.device)
            linear.bias = nn.Parameter(zeros, requires_grad=False)
