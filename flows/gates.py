"""How many stages run at once on this machine: slots per resource, each a file lock that ends with its process."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import lock_descriptor

from restorelcc.base.errors import BadInput

CPU, GPU = "cpu", "gpu"


def gate_folder() -> Path:
    """Per user and machine, so that all flows on a machine share its devices; $RESTORELCC_GATES names another folder.

    Raises BadInput when another user owns something of that name in the temporary folder, which everybody shares.
    """
    if given := os.environ.get("RESTORELCC_GATES"):
        folder = Path(given)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder
    folder = Path(tempfile.gettempdir()) / f"restorelcc-gates-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise BadInput(
            f"{folder}, which holds the locks of this machine's devices, is not a folder that only you can write: "
            "have it removed, or set RESTORELCC_GATES to a folder of your own"
        )
    return folder


@dataclass(frozen=True)
class Limits:
    """How many stages run at once on a machine: one per core and one per GPU, unless told otherwise."""

    parallel: int | None = None
    gpus: int | None = None

    def slots(self, resource: str) -> int:
        """Slots of the gate of the machine that asks, which with Dask is another than that of the flow."""
        if resource == GPU:
            return self.gpus or len(visible_gpus()) or 1
        return self.parallel or os.cpu_count() or 1


@contextmanager
def gate(
    resource: str, slots: int, *, every: bool = False, meanwhile: Callable[[], None] = lambda: None
) -> Iterator[int | None]:
    """Wait for one of the resource's slots and hold it; yields its number. every: hold all of them; yields None.

    meanwhile: called while it waits; what it raises ends the wait.
    """
    folder = gate_folder()
    files = [(folder / name).open("a") for name in _slot_names(resource, slots)]
    try:
        if every:
            for file in sorted(files, key=lambda file: file.name):  # two that want all of them never wait in a circle
                _wait_for_one([file.fileno()], meanwhile)
            yield None
        else:
            yield _wait_for_one([file.fileno() for file in files], meanwhile)
    finally:
        for file in files:
            file.close()  # which unlocks it


def _slot_names(resource: str, slots: int) -> list[str]:
    """A GPU's slots are named after the GPU, so that flows that see different GPUs do not share slots."""
    devices = visible_gpus() if resource == GPU else []
    if not devices:
        return [f"{resource}-{number}" for number in range(slots)]
    names = [device.strip().replace("/", "_") for device in devices]
    return [f"{resource}-{names[number % len(names)]}.{number // len(names)}" for number in range(slots)]


def _wait_for_one(descriptors: list[int], meanwhile: Callable[[], None]) -> int:
    while True:
        for number, descriptor in enumerate(descriptors):
            if lock_descriptor(descriptor, blocking=False):
                return number
        meanwhile()
        time.sleep(0.1)


def visible_gpus() -> list[str]:
    """GPUs that a stage may use, as CUDA_VISIBLE_DEVICES names them; empty without any."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip() not in ("", "-1")]
    listed = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number in range(len(list(listed.iterdir())))] if listed.is_dir() else []
