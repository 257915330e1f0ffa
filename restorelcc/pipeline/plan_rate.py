"""How fast this machine computes: what `plan` divides operations by."""

from __future__ import annotations

import time

import torch

EFFICIENCY = {"cpu": 0.75, "cuda": 0.5}  # share of one thread's, or a GPU's, matmul rate that a whole forward reaches
ALONE = 0.16  # share of a forward's time on one thread that further threads do not shorten
# Where a plan is asked for a device that is not there: dense bfloat16 of an H200 as its maker gives it.
ABSENT_GPU = 989e12


def reached(device: str, threads: int) -> float:
    """Share of the matmul rate of that many threads that a whole forward reaches. On a CPU by Amdahl's law: some of it
    is no product of matrices, and runs on one thread."""
    return EFFICIENCY["cuda"] if device == "cuda" else EFFICIENCY["cpu"] / (1 + ALONE * (threads - 1))


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.3, size: int | None = None) -> float:
    """2 N^3 for each product of two square matrices, over the time they took."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return ABSENT_GPU
    size = size or (8192 if device.type == "cuda" else 1024)
    one = torch.ones(size, size, device=device, dtype=dtype)
    one @ one  # the first product pays for setting up
    _settled(device)
    start, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        one @ one
        _settled(device)
        done += 1
    return 2 * size**3 * max(1, done) / spent


def bfloat16_speedup(float32_rate: float) -> float:
    """How many times as fast a CPU multiplies matrices in bfloat16 as in float32: many with matrix units (AMX), a
    hundredth with some that have none, where products of the usual size would take seconds."""
    cpu = torch.device("cpu")
    in_bfloat16, in_float32 = (
        matmul_rate(cpu, dtype, seconds=0.02, size=128) for dtype in (torch.bfloat16, torch.float32)
    )
    if in_bfloat16 < in_float32 / 4:
        return in_bfloat16 / in_float32
    return matmul_rate(cpu, torch.bfloat16) / float32_rate


def _settled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
