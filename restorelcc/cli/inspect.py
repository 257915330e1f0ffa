"""`restorelcc inspect`: what a checkpoint folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from restorelcc.base.errors import BadInput
from restorelcc.base.messages import say


def add(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(
        "inspect", help="Show what a checkpoint folder holds: sparsity per layer, N:M, removed heads, dtype, size."
    )(inspect)


def inspect(
    folder: Annotated[Path, typer.Argument(help="a checkpoint folder, or one with model_ref.json")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, with every tensor")] = False,
    family: Annotated[
        bool, typer.Option("--family", help="find the row of its model family, prove it by running it, and print it")
    ] = False,
) -> None:
    """Count what a checkpoint holds, and print it; or find out what its family is like."""
    if family:
        _print_family(folder, as_json=as_json)
        return
    from restorelcc.release.inspect.inspection import inspect_checkpoint

    found = inspect_checkpoint(folder)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from restorelcc.release.inspect.terminal import print_inspection

    print_inspection(found)


def _print_family(folder: Path, *, as_json: bool) -> None:
    from restorelcc.models.checkpoint_check import loaded_config, refused
    from restorelcc.release.inspect.family import found_family, row_text

    if as_json:
        raise BadInput("inspect --family prints a row of Python code: leave --json out")
    config = loaded_config(folder)
    with refused("model of two layers", folder):
        row, proofs = found_family(config)
    typer.echo(row_text(config.model_type, row))
    for proof in proofs:
        say(f"holds: {proof}")
