"""`restorelcc export`: a restored model as a stock checkpoint."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout, project_of
from restorelcc.base.recoveries import COMPENSATIONS, nothing_changed, what_no_bias_carries

_PARAMS = Path("params.yaml")

OutOption = Annotated[Path, typer.Option("--out", "-o", help="the folder to write")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="replace the output folder if it is not empty")]
ShardOption = Annotated[str, typer.Option("--max-shard-size", help="of one weight file, e.g. 5GB or 500MB")]
SliceOption = Annotated[bool, typer.Option("--slice", help="cut removed heads and channels out (structured pruning)")]
MergeOption = Annotated[
    str | None,
    typer.Option("--merge", help="lora, dora, eora: zeros-filled (dense again) or zeros-kept (sparse, worse)"),
]
PackedOption = Annotated[bool, typer.Option("--packed", help="write it without its zeros; restorelcc unpack undoes it")]
BaseOption = Annotated[str | None, typer.Option("--base-model", help="hub id of the base model, for the model card")]
LicenceOption = Annotated[str | None, typer.Option("--licence", help="licence of the base model, for the model card")]
RecordOption = Annotated[bool, typer.Option("--json", help="JSON on stdout: what restorelcc.json records")]


def add(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("export", help="Write a restored model as a stock checkpoint: a cell of the grid, or two files.")(
        export
    )


def export(
    out: OutOption,
    model: Annotated[str | None, typer.Option("--model", "-m", help="key of `models` in params.yaml")] = None,
    pruning: Annotated[str | None, typer.Option("--pruning", "-p", help="as in grid.pruning")] = None,
    head_ratio: Annotated[str | None, typer.Option("--head-ratio", "-r", help="as in grid.head_ratio")] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", "--recovery", "-b", help="as in grid.recovery, in place of a head ratio"),
    ] = None,
    merge: MergeOption = None,
    pruned: Annotated[Path | None, typer.Option("--pruned", help="folder of a pruned checkpoint")] = None,
    compensation: Annotated[Path | None, typer.Option("--compensation", help="compensation.safetensors")] = None,
    max_shard_size: ShardOption = "5GB",
    cut: SliceOption = False,
    packed: PackedOption = False,
    overwrite: OverwriteOption = False,
    base_model: BaseOption = None,
    licence: LicenceOption = None,
    params: Annotated[Path, typer.Option("--params", help="the parameter file; data/ is in the same folder")] = _PARAMS,
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, overrides the file")] = None,
    as_json: RecordOption = False,
) -> None:
    """Fold the compensation in, write the checkpoint, say where it is."""
    from restorelcc.pipeline.params import load_params

    shard_bytes = size_in_bytes("--max-shard-size", max_shard_size)
    names, files = [model, pruning, head_ratio or method], [pruned, compensation]
    if merge and model is None:
        raise BadInput("--merge is of a cell of the grid: give --model, --pruning and --method")
    if (None in names and None in files) or (any(names) and any(files)) or (head_ratio and method):
        raise BadInput(
            "export needs either --model, --pruning and one of --head-ratio and --method (a cell of the grid), or "
            "--pruned and --compensation (two files)"
        )
    checked = None if model is None else load_params(params, tuple(set_ or ()))
    named = None if checked is None else checked.cell(model, pruning, head_ratio, _recovery_of(method))
    from restorelcc.release.export.cell import Parts, cell_options, cell_parts, export_cell
    from restorelcc.release.export.export import ExportOptions
    from restorelcc.release.export.facts import file_facts

    if checked is None or named is None:
        assert pruned is not None
        facts = file_facts(pruned, base_model=base_model, licence=licence)
        parts, options = Parts(pruned, compensation), ExportOptions(card=facts)
    else:
        from restorelcc.pipeline.made_with import made_with

        layout = Layout(project_of(params))
        parts = cell_parts(named, layout, merge)
        ran = made_with(named, checked, layout)
        options = cell_options(named, ran, layout, base_model=base_model, licence=licence, merge=merge)
    options = replace(options, max_shard_bytes=shard_bytes, cut=cut, packed=packed, overwrite=overwrite)
    say_what_was_written(out, export_cell(parts, out, options, merge), as_json=as_json)


def _recovery_of(method: str | None) -> str | None:
    """The method as a value of grid.recovery. Raises BadInput for those that a grid has as head ratios."""
    if method in COMPENSATIONS:
        raise BadInput(f"--method {method}: in a grid it is a head ratio, give --head-ratio instead")
    return method


def say_what_was_written(out: Path, record: dict[str, Any], *, as_json: bool = False) -> None:
    """Two lines on stdout, or the record."""
    if as_json:
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
        return
    route, method = record["route"], record.get("method")
    typer.echo(f"{out}: {route['model_type']}, {record['sparsity']['share']:.2%} of the targeted weights are zero")
    told = f"{len(route['folded'])} biases carry the compensation ({route['name']})"
    if not route["folded"]:
        told = what_no_bias_carries(record)
    verb = "tried" if nothing_changed(record) else "recovered by"
    by = f"{verb} {method['name']}, {method['does']}; " if method else ""
    typer.echo(f"{by}{told}; check with: restorelcc verify {out}")


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size_in_bytes(option: str, text: str) -> int:
    """`5GB`, `500 MiB` or a plain number of bytes. Raises BadInput naming the option."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip(), re.IGNORECASE)
    if found is None or found[2].upper() not in _UNITS or float(found[1]) <= 0:
        raise BadInput(f"{option} {text!r} is not a size: write for example 5GB, 500MB or 2GiB")
    return max(1, int(float(found[1]) * _UNITS[found[2].upper()]))
