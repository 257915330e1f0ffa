"""Which of several processes this one is, as `accelerate launch` and torchrun tell it in the environment; no torch."""

from __future__ import annotations

import os


def process_count() -> int:
    """How many processes work together; 1 where nothing launched several."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_first_process() -> bool:
    """Whether this is the process that locks, speaks and writes for all."""
    return int(os.environ.get("RANK") or 0) == 0


def weights_are_shared_out() -> bool:
    """Whether each process holds a share of the frozen weights (FSDP), as `accelerate launch --use_fsdp` asks for."""
    return process_count() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes")
