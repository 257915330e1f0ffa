"""How many floating point operations a second this machine does in a matrix product."""

from __future__ import annotations

import time

import torch

# Where a plan is asked for a device that is not there: dense bfloat16 of an H200 as its maker gives it.
ABSENT_GPU = 989e12


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """2 N^3 for each product of two square matrices, over the time they took."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return ABSENT_GPU
    size = 8192 if device.type == "cuda" else 1024
    one = torch.ones(size, size, device=device, dtype=dtype)
    one @ one  # the first product pays for setting up
    _settled(device)
    start, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        one @ one
        _settled(device)
        done += 1
    return 2 * size**3 * max(1, done) / spent


def _settled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
