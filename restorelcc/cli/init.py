"""`restorelcc init`: a new project for the installed package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from restorelcc.base.errors import BadInput

_MADE = ("dvc.yaml", "params.yaml", "prefect.yaml", "versions")  # refused where they are somebody's already


def add(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("init", help="Make a project in a folder: dvc.yaml and params.yaml, ready for `dvc repro`.")(init)


def init(
    folder: Annotated[Path, typer.Argument(help="the project's folder; created if it does not exist")] = Path(),
) -> None:
    """Write the files, set up git and DVC where they are not, and say what comes next."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file: give a folder")
    for name in _MADE:
        if (folder / name).exists():
            raise BadInput(f"{folder} already has {name}, which would be replaced: give another folder")
    from restorelcc.pipeline.scaffold import new_project

    try:
        new_project(folder)
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror}") from error
    typer.echo(f"Created a project in {folder}. Edit its params.yaml, then run in that folder:")
    typer.echo("    restorelcc check       # is params.yaml good?")
    typer.echo("    restorelcc versions    # after every upgrade: the code and packages that are installed now")
    typer.echo("    dvc repro              # runs what changed; `restorelcc table` shows the results")
