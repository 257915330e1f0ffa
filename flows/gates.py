"""How many stages run at once on this machine: slots per resource, each a file lock that ends with its process."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CPU, GPU = "cpu", "gpu"


def gate_folder() -> Path:
    """Per user and machine, so that all flows on a machine share its devices; $RESTORELCC_GATES puts it elsewhere."""
    given = os.environ.get("RESTORELCC_GATES")
    return Path(given) if given else Path(tempfile.gettempdir()) / f"restorelcc-gates-{os.getuid()}"


def local_slots(parallel: int | None, gpus: int | None = None) -> dict[str, int]:
    """Slots of this machine's gates: one per core and one per GPU, unless told otherwise."""
    return {CPU: parallel or os.cpu_count() or 1, GPU: gpus or len(visible_gpus()) or 1}


@contextmanager
def gate(resource: str, slots: int) -> Iterator[int]:
    """Wait for one of the resource's slots and hold it; yields its number."""
    folder = gate_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = [(folder / f"{resource}-{number}").open("a") for number in range(slots)]
    try:
        yield _wait_for_one([file.fileno() for file in files])
    finally:
        for file in files:
            file.close()  # which unlocks it


def _wait_for_one(descriptors: list[int]) -> int:
    while True:
        for number, descriptor in enumerate(descriptors):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return number
        time.sleep(0.1)


def visible_gpus() -> list[str]:
    """GPUs that a stage may use, as CUDA_VISIBLE_DEVICES names them; empty without any."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip() not in ("", "-1")]
    listed = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number in range(len(list(listed.iterdir())))] if listed.is_dir() else []
