"""How many stages run at once on this machine: slots per resource, each a file lock that ends with its process."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from filelock import lock_descriptor
from pydantic import Field

from restorelcc.base.errors import BadInput
from restorelcc.pipeline.gpus import listed_gpus, seen_by_torch

CPU, GPU = "cpu", "gpu"
AtLeastOne = Annotated[int, Field(ge=1)]  # of a flow's parameters, which Prefect's UI and API check by it
_UNLISTED = (Path("/dev/dxg"), Path("/dev/kfd"))  # of WSL 2 and of ROCm: NVIDIA's driver lists no GPU there


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
    """How much runs at once on a machine: one stage per GPU, and on the CPU stages with as many threads as there are
    cores, unless told how many stages."""

    parallel: int | None = None
    gpus: int | None = None

    def slots(self, resource: str) -> int:
        """Slots of the gate of the machine that asks, which with Dask is another than that of the flow."""
        if resource == GPU:
            return self.gpus or len(visible_gpus()) or 1
        return self.parallel or os.cpu_count() or 1

    def taken(self, resource: str, threads: int) -> int:
        """Slots that a stage takes: a core for each of its threads, where 0 is torch's own choice: OMP_NUM_THREADS, or
        every core. One on a GPU, and where it was said how many stages run at once."""
        if resource == GPU or self.parallel:
            return 1
        told = os.environ.get("OMP_NUM_THREADS", "")
        return threads or (int(told) if told.isdecimal() else 0) or self.slots(CPU)

    def share(self) -> int | None:
        """Threads of a stage that leaves their number to torch, so that as many stages as may run at once do not fight
        over the cores; None where such a stage has every core, or OMP_NUM_THREADS says how many."""
        told = not self.parallel or "OMP_NUM_THREADS" in os.environ
        return None if told else max(1, (os.cpu_count() or 1) // (self.parallel or 1))


@contextmanager
def gate(
    resource: str, slots: int, *, taken: int = 1, every: bool = False, meanwhile: Callable[[], None] = lambda: None
) -> Iterator[int | None]:
    """Wait for one of the resource's slots and hold it; yields its number. every: hold every GPU; yields None.

    taken: how many slots, or all where there are fewer; the number is that of the first.
    meanwhile: called while it waits; what it raises ends the wait.
    """
    folder = gate_folder()
    names = _every_slot(folder, slots) if every else _slot_names(resource, slots)
    with ExitStack() as held:  # to close a file unlocks it
        files = [held.enter_context((folder / name).open("a")) for name in names]
        if every:
            for file in files:
                _wait_for([file.fileno()], 1, meanwhile)
            yield None
            return
        descriptors = [file.fileno() for file in files]
        if taken == 1:
            yield _wait_for(descriptors, 1, meanwhile)
            return
        # One at a time: of two that each hold some, neither would ever have enough.
        with (folder / f"{resource}-several").open("a") as collecting:
            _wait_for([collecting.fileno()], 1, meanwhile)
            first = _wait_for(descriptors, min(taken, slots), meanwhile)
        yield first


def _slot_names(resource: str, slots: int) -> list[str]:
    """A GPU's slots are named after the GPU, so that flows that see different GPUs do not share slots."""
    if resource != GPU:
        return [f"{resource}-{number}" for number in range(slots)]
    gpus = _gpu_names()
    return [f"{gpus[number % len(gpus)]}.{number // len(gpus)}" for number in range(slots)]


def _every_slot(folder: Path, slots: int) -> list[str]:
    """The slots of all visible GPUs, however few stages may run at once, and those that other flows have made of them.
    Sorted: two that want all of them never wait in a circle."""
    gpus = _gpu_names()
    made = (path.name for path in folder.iterdir() if path.name.rpartition(".")[0] in gpus)
    return sorted({*_slot_names(GPU, max(slots, len(gpus))), *made})


def _gpu_names() -> list[str]:
    """What the slots of the visible GPUs begin with; one name for all where none can be told."""
    return [f"{GPU}-{device.strip().replace('/', '_')}" for device in visible_gpus() or ["any"]]


def _wait_for(descriptors: list[int], count: int, meanwhile: Callable[[], None]) -> int:
    """Lock as many of the files; the number of the first of them."""
    locked: list[int] = []
    while True:
        for number, descriptor in enumerate(descriptors):
            if number not in locked and lock_descriptor(descriptor, blocking=False):
                locked.append(number)
            if len(locked) == count:
                return locked[0]
        meanwhile()
        time.sleep(0.1)


def visible_gpus() -> list[str]:
    """GPUs that a stage may use, as CUDA_VISIBLE_DEVICES names them; empty without any."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(listed_gpus() or _unlisted_gpus())]


def may_have_gpu(limits: Limits) -> bool:
    """Whether stages of this machine may use a GPU: one is visible, or it is said how many they may use and nothing
    hides them."""
    told = limits.gpus is not None and "CUDA_VISIBLE_DEVICES" not in os.environ
    return told or bool(visible_gpus())


_asking, _seen = threading.Lock(), cache(seen_by_torch)


def _unlisted_gpus() -> int:
    """How many GPUs torch can use, asked once, where there is a device of a driver that lists none."""
    if not any(device.exists() for device in _UNLISTED):
        return 0
    with _asking:  # a flow's stages are threads
        return _seen().usable
