"""Where weights are when they are not whole on one device: kept off it by accelerate, or spread by FSDP2.

Of spread weights every process holds a share of each block and of what is outside them; a block is whole only while it
runs, and all processes have to run the same forward and backward passes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from restorelcc.models.architectures import all_blocks


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


def shared_out(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The same model, in place, its weights spread over the processes' devices; only one block is on `device` whole."""
    from accelerate import PartialState  # attaching a compensation needs neither of these
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    state = PartialState(cpu=device.type == "cpu")
    mesh = init_device_mesh(device.type, (state.num_processes,))
    for block in all_blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def whole(weight: Tensor) -> Tensor:
    """A weight itself; of one that is spread over processes all of it, for which every process has to ask."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight
