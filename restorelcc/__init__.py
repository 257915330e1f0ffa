"""Restore the accuracy of pruned language models, reproducibly (RestoreLCC, arXiv 2510.21834).

In a notebook: prune, capture, extract, probe, compensate, fold and attach work on models in memory (docs/notebook.md);
load_packed loads a checkpoint that `restorelcc export --packed` wrote (docs/packed.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restorelcc.api import (
        Activations,
        Compensation,
        Components,
        Ranking,
        attach,
        capture,
        compensate,
        extract,
        fold,
        load_packed,
        probe,
        prune,
    )

__version__ = "0.1.0"
__all__ = [
    "Activations",
    "Compensation",
    "Components",
    "Ranking",
    "attach",
    "capture",
    "compensate",
    "extract",
    "fold",
    "load_packed",
    "probe",
    "prune",
]


def __getattr__(name: str) -> Any:
    """Imported only when asked for, so that `restorelcc --help` does not wait for torch."""
    if name in __all__:
        from restorelcc import api

        return getattr(api, name)
    raise AttributeError(f"module 'restorelcc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*globals(), *__all__))
