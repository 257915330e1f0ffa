"""`restorelcc compensation`: put one into a checkpoint, take it out again bit for bit, or show what it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from restorelcc.cli.export import (
    OutOption,
    OverwriteOption,
    RecordOption,
    ShardOption,
    say_what_was_written,
    size_in_bytes,
)


def add(app: typer.Typer) -> None:
    """Register the verbs."""
    verbs = typer.Typer(no_args_is_help=True, help="Put a compensation into a checkpoint, take it out, or show it.")
    verbs.command("apply", help="Fold a compensation into a checkpoint folder; all its other files stay as they are.")(
        apply
    )
    verbs.command("remove", help="Write the checkpoint as it was before a compensation was folded in, bit for bit.")(
        remove
    )
    verbs.command("show", help="Show what a compensation file, or the one in a restored checkpoint, holds.")(show)
    app.add_typer(verbs, name="compensation")


def apply(
    checkpoint: Annotated[Path, typer.Argument(help="folder of a pruned checkpoint")],
    compensation: Annotated[Path, typer.Argument(help="compensation.safetensors")],
    out: OutOption,
    max_shard_size: ShardOption = "5GB",
    overwrite: OverwriteOption = False,
    as_json: RecordOption = False,
) -> None:
    """Fold the compensation in."""
    shard_bytes = size_in_bytes("--max-shard-size", max_shard_size)
    from restorelcc.release.export.apply import apply_compensation
    from restorelcc.release.export.export import ExportOptions

    options = ExportOptions(max_shard_bytes=shard_bytes, overwrite=overwrite, verbatim=True)
    say_what_was_written(out, apply_compensation(checkpoint, compensation, out, options), as_json=as_json)


def remove(
    folder: Annotated[Path, typer.Argument(help="folder of a restored checkpoint")],
    out: OutOption,
    overwrite: OverwriteOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout: which files were written")] = False,
) -> None:
    """Write the checkpoint without its compensation."""
    from restorelcc.release.export.apply import remove_compensation

    files = remove_compensation(folder, out, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps({"folder": str(out), "files": files}, indent=2, ensure_ascii=False))
    else:
        typer.echo(f"{out}: weights and config as they were, byte for byte")


def show(
    path: Annotated[Path, typer.Argument(help="compensation.safetensors, or the folder of a restored checkpoint")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout")] = False,
) -> None:
    """Print heads, sites and metadata."""
    from restorelcc.release.shown import described

    found = described(path)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        for line in _lines(found):
            typer.echo(line)


def _lines(found: dict[str, Any]) -> list[str]:
    total = found["layers"] * found["heads_per_layer"]
    lines = [
        f"{len(found['heads'])} of {total} heads are compensated ({found['layers']} layers of "
        f"{found['heads_per_layer']} heads, {found['head_dim']} numbers each); {len(found['sites'])} further sites"
    ]
    lines += [f"  layer {row['layer']:>3}  head {row['head']:>3}  norm {row['norm']:.4g}" for row in found["heads"]]
    lines += [f"  layer {row['layer']:>3}  {row['linear']}  norm {row['norm']:.4g}" for row in found["sites"]]
    return lines + [f"  {key}: {value}" for key, value in sorted(found["metadata"].items())]
