"""`restorelcc pack` and `restorelcc unpack`: a checkpoint without its zeros, and the stock one again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from restorelcc.base.messages import note
from restorelcc.cli.export import OutOption, OverwriteOption


def add(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command("pack", help="Write a checkpoint without its zeros: a bit for every weight, and those that are left.")(
        pack
    )
    app.command("unpack", help="Write the stock checkpoint that was packed, bit for bit.")(unpack)


def pack(
    folder: Annotated[Path, typer.Argument(help="folder of a pruned or restored checkpoint")],
    out: OutOption,
    overwrite: OverwriteOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout")] = False,
) -> None:
    """Pack the sparse linears, say what it saved."""
    from restorelcc.release.packed.folder import pack_folder

    sizes = pack_folder(folder, out, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps({"folder": str(out), **sizes}, indent=2))
        return
    typer.echo(
        f"{out}: {sizes['packed']:,} bytes of weights instead of {sizes['stock']:,} "
        f"({sizes['packed'] / sizes['stock']:.1%}), {sizes['tensors']} tensors packed"
    )
    if sizes["packed"] >= sizes["stock"]:
        note(f"{out} is no smaller than {folder}: its zeros are too few, or its matrices too small, for packing to pay")


def unpack(
    folder: Annotated[Path, typer.Argument(help="a folder that `export --packed` or `pack` wrote")],
    out: OutOption,
    overwrite: OverwriteOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout: the digest of every weight file")] = False,
) -> None:
    """Write the stock files, each with the digest that it had."""
    from restorelcc.release.packed.folder import unpack_folder

    digests = unpack_folder(folder, out, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps({"folder": str(out), "files": digests}, indent=2, ensure_ascii=False))
        return
    for name, digest in digests.items():
        typer.echo(f"{out / name}: sha256 {digest}, as it was packed")
