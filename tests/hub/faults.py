"""Faults that a loopback hub can be told to have."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class Fault:
    """What goes wrong with requests whose path holds `path`, the next `times` times (None: always).

    kind: "status" answers with `status`; "cut" sends half of what was asked for and closes the connection; "reset"
    does so with a reset, as a router that forgets a connection does; "silent" closes without an answer.
    """

    kind: str
    path: str = ""
    status: int = 500
    times: int | None = None
    method: str | None = None
    code: str | None = None  # X-Error-Code of a "status"


@dataclass
class Faults:
    """The faults of one hub; the first that fits a request is used up once."""

    _active: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._active.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._active.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """The fault of this request, counted as used."""
        with self._lock:
            for fault in self._active:
                if fault.path in path and fault.method in (None, method) and fault.times != 0:
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None
