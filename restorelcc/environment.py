"""What libraries read from the environment when they load."""

from __future__ import annotations

import os

DEFAULTS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads that wait spin by default: beside another busy process a step then takes twenty times as long.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Arrow's own pool keeps what it has had: writing activations then takes three times the memory in use.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}


def set_defaults() -> None:
    """Set what the user has not; before torch and pyarrow are imported, which read it once."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
