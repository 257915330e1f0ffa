"""`restorelcc plan`: memory, disk and time of every stage of a model, and how much of it is left to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from restorelcc.base.layout import Layout, project_of


def add(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("plan", help="Memory, disk and time of every stage of a model, and what is left to run.")(plan)


def plan(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="key of `models` in params.yaml  [those of the grid]")
    ] = None,
    pruning: Annotated[str | None, typer.Option("--pruning", "-p", help="instead of those of the grid")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu or cuda, instead of the model's own")] = None,
    params: Annotated[Path, typer.Option("--params", help="the parameter file")] = Path("params.yaml"),
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, overrides the file")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, bytes and seconds")] = False,
) -> None:
    """Estimate what the stages of the models need, ask DVC which of them are left, and print both."""
    from restorelcc.pipeline.left_to_run import CannotTell, finished_of
    from restorelcc.pipeline.params import load_params
    from restorelcc.pipeline.plan import whole_plan, with_left

    settings, layout = tuple(set_ or ()), Layout(project_of(params))
    checked = load_params(params, settings)
    aliases, prunings = (model,) if model else checked.grid.model, (pruning,) if pruning else checked.grid.pruning
    cells = [[checked.cell(alias, name, None) for name in prunings] for alias in aliases]
    plans = [whole_plan(params, settings, each, layout, device) for each in cells]
    done, reason = None, ""
    try:
        done = finished_of(params, settings, aliases, prunings)
    except CannotTell as error:
        reason = str(error)
    plans = [with_left(each, checked.grid, done) for each in plans]
    if as_json:
        typer.echo(json.dumps(plans[0] if model else plans, indent=2))
        return
    from restorelcc.cli.plan_table import print_plans

    print_plans(plans, reason)
