"""`restorelcc engines`: how inference engines will treat a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def add(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("engines", help="Will transformers, vLLM, SGLang, llama.cpp load it, read its biases, use its zeros?")(
        engines
    )


def engines(
    folder: Annotated[Path, typer.Argument(help="a checkpoint folder, or one with model_ref.json")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout")] = False,
    load: Annotated[
        bool, typer.Option("--try", help="load the checkpoint with transformers: are all of its tensors used?")
    ] = False,
) -> None:
    """Print one block per engine."""
    from restorelcc.release.engines.report import engine_report

    found = engine_report(folder, load=load)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        typer.echo("\n".join(_lines(found)))


def _lines(found: dict[str, Any]) -> list[str]:
    biases = ", ".join(found["biases"]) or "none"
    lines = [f"{found['folder']}: {found['model_type']}, biases that are not zero: {biases}"]
    for report in found["engines"]:
        lines.append(f"{report['engine']} ({report['installed'] or 'not installed here'})")
        lines += [f"  {key:<6} {report[key]}" for key in ("loads", "bias", "zeros", "source", "tried") if report[key]]
    packed = "restorelcc pack and load_packed use the zeros, on the CPU."
    return [*lines, f"No speed is claimed here; measure it on your hardware. {packed}"]
