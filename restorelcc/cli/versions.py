"""`restorelcc versions`: bring versions/ up to date with the installed packages, and in a project with their code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from restorelcc.pipeline.versions import write_versions


def add(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("versions", help="Write the versions of what is installed into versions/, where DVC sees them.")(
        versions
    )


def versions(
    params: Annotated[Path, typer.Option("--params", help="the parameter file; versions/ lies beside it")] = Path(
        "params.yaml"
    ),
) -> None:
    """Write what is installed, and say what changed."""
    for line in write_versions(params.resolve().parent):
        typer.echo(line, err=True)
