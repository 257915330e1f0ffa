"""`restorelcc verify`: prove that a restored checkpoint is what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from restorelcc.release.verify.fresh import Waiting


def add(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(
        "verify", help="Prove a restored checkpoint: zeros, N:M, keys, logits, digests. Exit 1 at the first fault."
    )(verify)


def verify(
    folder: Annotated[Path, typer.Argument(help="folder of a restored checkpoint")],
    against: Annotated[Path | None, typer.Option("--against", help="folder of the pruned checkpoint")] = None,
    compensation: Annotated[Path | None, typer.Option("--compensation", help="compensation.safetensors")] = None,
    skip_logits: Annotated[
        bool, typer.Option("--skip-logits", help="for models too large to run in float32 here")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout")] = False,
) -> None:
    """Check after check, one line each."""
    waiting = _stock_process() if folder.is_dir() else None
    from restorelcc.release.verify.verify import subject
    from restorelcc.release.verify.verify import verify as findings

    checks = []
    for title, found in findings(subject(folder, against, compensation), logits=not skip_logits, waiting=waiting):
        checks.append({"check": title, "found": found})
        if not as_json:
            typer.echo(f"ok  {title:<14} {found}")
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "verified": True, "checks": checks}, indent=2))
    else:
        typer.echo(f"{folder} is verified")


def _stock_process() -> Waiting | None:
    """The process that will load the checkpoint, forked while nothing of this package that touches models is imported.

    None where that is too late, or where forks are not safe: then one is started, which imports transformers again.
    """
    if "restorelcc.models" in sys.modules or sys.platform != "linux":
        return None
    from restorelcc.release.verify.fresh import wait

    return wait()
