"""Frozen weights spread over several processes, for models that no single device holds: FSDP2, torch's fully_shard.

Every process holds a share of each block and of what is outside them; a block is whole only while it runs. What is
trained is small and whole in every process. All processes have to run the same forward and backward passes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from restorelcc.models.architectures import blocks_of


def shared_out(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The same model, in place, its weights spread over the processes' devices; only one block is on `device` whole."""
    from accelerate import PartialState  # attaching a compensation needs neither of these
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    state = PartialState(cpu=device.type == "cpu")
    mesh = init_device_mesh(device.type, (state.num_processes,))
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def whole(weight: Tensor) -> Tensor:
    """A weight itself; of one that is spread over processes all of it, for which every process has to ask."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight
