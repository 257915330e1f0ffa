"""What must be set before any number is computed: seeds, threads, determinism, telemetry off."""

from __future__ import annotations

import os

import torch

from restorelcc.core.errors import BadInput

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def prepare(*, seed: int, threads: int) -> None:
    """Seed torch, set its CPU threads (0 = torch's own choice) and refuse non-deterministic kernels on the CPU."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one, else the CPU. Raises BadInput for a GPU that is not there."""
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        # Under `accelerate launch` every process has a GPU of its own.
        rank = os.environ.get("LOCAL_RANK")
        return torch.device("cuda") if rank is None else torch.device("cuda", int(rank))
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput(f"models.<name>.device is {name!r}, but this machine shows no GPU: write auto or cpu")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on the CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return _DTYPES[name]
