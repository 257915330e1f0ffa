"""Whether the GPUs of this machine are ones that the installed torch computes on, asked of a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_LISTED = Path("/proc/driver/nvidia/gpus")
_ASKED = "import torch; print('seen', torch.version.cuda, torch.cuda.is_available(), torch.cuda.device_count())"
_SECONDS = 120


class Seen(NamedTuple):
    """What torch says; `problem` is the last thing that it said where it did not start."""

    cuda: str | None = None  # the version that it is built for
    usable: int = 0  # GPUs that it can use
    problem: str | None = None


class Diagnosis(NamedTuple):
    """A line on the GPUs, and a sentence for everything that is wrong with them."""

    text: str
    faults: list[str]


def listed_gpus() -> int:
    """How many GPUs the driver of NVIDIA lists."""
    return len(list(_LISTED.iterdir())) if _LISTED.is_dir() else 0


def seen_by_torch() -> Seen:
    """Import torch in another process, and ask it."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASKED], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Seen(problem=f"it takes more than {_SECONDS} s")
    words = done.stdout.split()
    if done.returncode or words[-4:-3] != ["seen"]:
        return Seen(problem=(done.stderr.strip().splitlines() or ["it says nothing"])[-1])
    cuda, available, count = words[-3:]
    return Seen(None if cuda == "None" else cuda, int(count) if available == "True" else 0)


def diagnosed(devices: Mapping[str, str]) -> Diagnosis:
    """Of the GPUs that are listed, and of those that models want; devices: model to its `device`."""
    listed, named = listed_gpus(), {alias: name for alias, name in devices.items() if name.startswith("cuda")}
    if not listed and not named:
        return Diagnosis("no GPU", [])
    seen = seen_by_torch()
    usable = f"torch can use {_gpus(seen.usable)}"
    text = f"{_gpus(listed)} listed, {usable}" if listed else usable
    broken = seen.problem is not None or (listed and not seen.usable)
    faults = [_why_none(listed, seen)] if broken and set(devices.values()) != {"cpu"} else []
    for alias, name in named.items():
        if int(name.partition(":")[2] or 0) >= seen.usable:
            faults.append(
                f"models.{alias}.device is {name!r}, and {usable}, counted from 0: write another number, auto or cpu"
            )
    return Diagnosis(text, faults)


def _gpus(count: int) -> str:
    return f"{count or 'no'} GPU{'s' if count > 1 else ''}"


def _why_none(listed: int, seen: Seen) -> str:
    if seen.problem:
        return f"torch does not start ({seen.problem}): install it again"
    if seen.cuda is None:
        return (
            f"torch is a build without CUDA, while {_gpus(listed)} can be seen: install the build with CUDA "
            "(`make env TORCH_INDEX=<url>`), or write device: cpu"
        )
    return (
        f"torch, built for CUDA {seen.cuda}, cannot use {_gpus(listed)}: update the driver if it is older than that "
        "(nvidia-smi says), show the GPUs to this container or in CUDA_VISIBLE_DEVICES, or write device: cpu"
    )
