"""The stage `inputs`, by DVC for one model and by everything that starts a run for all models of the grid."""

from __future__ import annotations

from restorelcc.core.cell import Cell
from restorelcc.core.errors import BadInput
from restorelcc.inputs.stage import run
from restorelcc.io.layout import Layout
from restorelcc.params import Params
from restorelcc.workflow.running import held_lock, stage_lock

STAGE = "inputs"


def lay_out_inputs(params: Params, alias: str, layout: Layout) -> None:
    """Show DVC the files that a model names. Raises BadInput for one that is missing."""
    cell = Cell(alias)
    with held_lock(stage_lock(layout, STAGE, cell)):
        run(cell, params.named(alias), layout)


def lay_out_what_is_here(params: Params, layout: Layout) -> list[str]:
    """`lay_out_inputs` for every model of the grid whose files are on this machine; a sentence for each other one."""
    absent = []
    for alias in params.grid.model:
        try:
            lay_out_inputs(params, alias, layout)
        except BadInput as error:
            absent.append(f"{error}; what was computed from it can be read here, and not computed anew")
    return absent
