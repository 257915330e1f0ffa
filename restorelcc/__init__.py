"""Give pruned language models their accuracy back, reproducibly (RestoreLCC, arXiv 2510.21834).

In a notebook: prune, capture, extract, probe, compensate, fold and attach work on models in memory (docs/notebook.md).
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
# Functions of restorelcc.api; those that are also the name of a stage's package are that package, which can be called.
_STAGES = ("prune", "capture", "extract", "probe", "compensate")
_FUNCTIONS = ("fold", "attach")
_TYPES = ("Compensation", "Activations", "Components", "Ranking")


def __getattr__(name: str) -> Any:
    """Imported only when asked for, so that `restorelcc --help` does not wait for torch."""
    if name in _STAGES:
        return importlib.import_module(f"restorelcc.{name}")
    if name in (*_FUNCTIONS, *_TYPES):
        return getattr(importlib.import_module("restorelcc.api"), name)
    raise AttributeError(f"module 'restorelcc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*globals(), *_STAGES, *_FUNCTIONS, *_TYPES))
