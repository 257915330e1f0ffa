"""Models of which accelerate keeps a part in main memory or on disk, and brings it in when it is needed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from transformers import PreTrainedModel


def all_at_hand(model: PreTrainedModel) -> bool:
    """Whether every weight is on the device that it computes on."""
    return all(parameter.device.type != "meta" for parameter in model.parameters())


def at_hand(module: nn.Module) -> AbstractContextManager[None]:
    """Inside, the module's own parameters are on the device that it computes on."""
    if not hasattr(module, "_hf_hook"):
        return nullcontext()
    from accelerate.utils import align_module_device  # where there is a hook of accelerate's, accelerate is there

    return align_module_device(module)


def set_bias(linear: nn.Linear, bias_O: Tensor) -> None:
    """Give a linear a bias, also where accelerate brings its parameters in at each forward, from a store of its own."""
    linear.bias = nn.Parameter(bias_O, requires_grad=False)
    stored = getattr(getattr(linear, "_hf_hook", None), "weights_map", None)
    if stored is not None:
        stored.dataset.state_dict[f"{stored.prefix}bias"] = bias_O
