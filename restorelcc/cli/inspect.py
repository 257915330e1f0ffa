"""`restorelcc inspect`: what a checkpoint folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def add(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(
        "inspect", help="Show what a checkpoint folder holds: sparsity per layer, N:M, removed heads, dtype, size."
    )(inspect)


def inspect(
    folder: Annotated[Path, typer.Argument(help="a checkpoint folder, or one with model_ref.json")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, with every tensor")] = False,
) -> None:
    """Count what a checkpoint holds, and print it."""
    from restorelcc.release.inspect.inspection import inspect_checkpoint

    found = inspect_checkpoint(folder)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from restorelcc.release.inspect.terminal import print_inspection

    print_inspection(found)
