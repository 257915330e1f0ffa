"""The options of exporting one cell of the grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from restorelcc.base.cell import Cell
from restorelcc.base.layout import Layout
from restorelcc.release.export.export import ExportOptions
from restorelcc.release.export.facts import cell_ancestors, cell_facts

_SECTIONS = ("corpus", "prune", "capture", "extract", "probe", "compensate")


def cell_options(
    cell: Cell,
    section: Callable[[str, str], BaseModel],
    layout: Layout,
    *,
    base_model: str | None = None,
    licence: str | None = None,
) -> ExportOptions:
    """Names, settings, ancestors and card of a cell; section: by model and name, with what the model puts over it."""
    config: dict[str, Any] = {name: section(str(cell.model), name).model_dump(mode="json") for name in _SECTIONS}
    return ExportOptions(
        names={"model": cell.model, "pruning": cell.pruning, "head_ratio": float(cell.head_ratio or 0)},
        config=config,
        ancestors=cell_ancestors(cell, layout),
        card=cell_facts(cell, layout, base_model=base_model, licence=licence),
    )
