"""The files outside the project that a model's entry names, laid out where DVC watches them.

Here: the part of params.yaml about one model that names files.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from restorelcc.base.model_entry import ModelEntry


@dataclass(frozen=True, kw_only=True)
class Named:
    """The keys of params.yaml that name files of a model, or that are settings of this model only."""

    entry: ModelEntry
    encoder: str | None = None  # corpus.encoder
    datasets: str | dict[str, str] | None = None  # evaluate.datasets
    prunings: tuple[str, ...] = ()  # of the grid
    external: dict[str, str] = field(default_factory=dict)  # pruning -> source of the checkpoint pruned elsewhere
