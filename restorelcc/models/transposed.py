"""Classes that store the weights of their linears turned, [I, O] (GPT-2's Conv1D), seen as ordinary Linear layers.

Letters: O output features, I input features.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from restorelcc.base.errors import BadInput


class TurnedLinear(nn.Linear):
    """A Linear whose weight [O, I] is a view of what a Conv1D stores, and which is saved and loaded as that."""

    def __init__(self, stored: Conv1D) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = stored.weight.shape
        self.weight = nn.Parameter(stored.weight.detach().T, requires_grad=stored.weight.requires_grad)
        self.bias = stored.bias
        self.training = stored.training

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = destination[f"{prefix}weight"].T.contiguous()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        name = f"{prefix}weight"
        turned = state_dict | ({name: state_dict[name].T} if name in state_dict else {})
        super()._load_from_state_dict(turned, prefix, *rest)


def with_linears(model: nn.Module) -> None:
    """Put a Linear in the place of every Conv1D of a model or a part of it; its outputs and what it saves stay.

    Raises BadInput for a model that is spread over devices, whose parts are brought in as they are stored.
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, Conv1D)]
    for name, module in found:
        if hasattr(module, "_hf_hook"):
            raise BadInput(
                "a model that stores its weights transposed (GPT-2) cannot be spread over devices: leave "
                "models.<name>.device_map out"
            )
        model.set_submodule(name, TurnedLinear(module))


def as_stored(module: nn.Module, leaf: str, value: Tensor) -> Tensor:
    """A parameter of a module as a checkpoint has it: a turned weight is turned back, and the other way round."""
    return value.T if isinstance(module, TurnedLinear) and leaf == "weight" else value
