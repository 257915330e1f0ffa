"""Settings that must be made before any number is computed: seeds, threads, determinism, telemetry off."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from typing import Literal, TypeVar

import torch
from torch import nn

from restorelcc.base.errors import BadInput

T = TypeVar("T")
R = TypeVar("R")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LOGITS = {"cpu": 2**25, "cuda": 2**29}  # entries that stand in memory at once, several times over in training
_PASS = {"cpu": 768, "cuda": 4096}  # tokens of a pass without logits
_M_MMAP_THRESHOLD = -3  # glibc, malloc.h


def prepare(*, seed: int, threads: int) -> None:
    """Seed torch, set its CPU threads (0 = torch's own choice) and refuse non-deterministic kernels on the CPU."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # With deterministic algorithms torch writes over every new buffer, also that of a model made without its weights:
    # time, and memory that nobody uses, for values that nothing here reads.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def give_back_memory() -> None:
    """Free the models that nothing refers to any more, but they themselves: accelerate's and FSDP's hooks make circles.

    A model that is loaded next is spread over the memory that is free then.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def on_threads(count: int) -> Iterator[int]:
    """Inside, torch computes on `count` CPU threads (0: as many as it chose). Yields how many they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextmanager
def resting(model: nn.Module) -> Iterator[None]:
    """Inside, the model drops nothing out and no parameter of it takes a gradient, whatever state it is in outside."""
    training = [module for module in model.modules() if module.training]
    taking = [part for part in model.parameters() if part.requires_grad]
    model.eval()
    for part in taking:
        part.requires_grad_(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for part in taking:
            part.requires_grad_(True)


def return_large_buffers(threshold: int = 2**20) -> None:
    """Have glibc give every freed buffer of `threshold` bytes or more back to the system at once.

    Left alone, it learns from the buffers it sees freed to keep all of up to 32 MiB in a heap, where they leave holes
    that the next, larger ones do not fit: pruning a model of 1 GB then peaks at twice the memory that is in use.
    Does nothing where the C library has no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, threshold)


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
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= (there := torch.cuda.device_count()):
        raise BadInput(f"models.<name>.device is {name!r}, but this machine shows {there} GPUs, counted from 0")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on the CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return _DTYPES[name]


def computes_as(dtype: str, device: str) -> str:
    """`float32 cpu`: the dtype and the kind of device that an entry of `models` means on this machine."""
    place = pick_device(device)
    return f"{str(pick_dtype(dtype, place)).removeprefix('torch.')} {place.type}"


def loss_scale(model: nn.Module) -> float:
    """What the loss is multiplied with on its way back: small gradients of a float16 model would round to zero."""
    return 2.0**10 if any(part.dtype == torch.float16 for part in model.parameters()) else 1.0


def tokens_of_a_pass(device: torch.device, budget: int | Literal["auto"]) -> int:
    """Tokens of one forward pass that projects none onto the vocabulary; auto: 768 on a CPU, whose caches hold less of
    a larger batch, and 4,096 on a GPU, which fewer would not keep busy."""
    return _PASS["cuda" if device.type == "cuda" else "cpu"] if budget == "auto" else budget


def computed_with(*packages: str) -> dict[str, str | int]:
    """CPU threads, and the versions of torch, transformers and further packages: on other ones a run that was killed
    would give other bits, and so does not go on."""
    return {"threads": torch.get_num_threads()} | {name: version(name) for name in ("torch", "transformers", *packages)}


def positions_at_once(device: torch.device, vocabulary: int) -> int:
    """Positions whose logits may stand in memory at once: 128 MiB of float32 on the CPU, 2 GiB on a GPU."""
    return max(1, _LOGITS["cuda" if device.type == "cuda" else "cpu"] // vocabulary)


def map_on_all_cores(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """[function(item) for item in items], on as many threads as torch may use, each with one of its own.

    For many small matrices: a factorization of one of them gains nothing from a second core, two at once do. torch
    lets go of Python's lock while it computes. Results do not depend on the number of threads.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            torch.set_num_threads(1)
            return list(pool.map(function, items))
        finally:
            torch.set_num_threads(threads)
