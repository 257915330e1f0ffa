"""The files outside the project that a model's entry names, laid out where DVC watches them.

Here: what params.yaml says of one model that names files.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from restorelcc.base.model_entry import ModelEntry


@dataclass(frozen=True, kw_only=True)
class Named:
    """What params.yaml says of a model that names files, or is a setting of this model alone."""

    entry: ModelEntry
    encoder: str | None = None  # corpus.encoder
    datasets: str | dict[str, str] | None = None  # evaluate.datasets
    prunings: tuple[str, ...] = ()  # of the grid
    external: dict[str, str] = field(default_factory=dict)  # pruning -> source of the checkpoint pruned elsewhere
