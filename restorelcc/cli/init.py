"""`restorelcc init`: a new project for the installed package, with a model of one's own if one is named."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from restorelcc.base.errors import BadInput
from restorelcc.base.package_data import SOURCE as PACKAGE

if TYPE_CHECKING:
    from restorelcc.base.layout import Layout
    from restorelcc.pipeline.params import Params

_MADE = ("dvc.yaml", "params.yaml", "prefect.yaml", "versions")  # refused where they are somebody's already
_OWN = (*_MADE, "params.schema.json", ".gitignore", ".dvcignore", ".dvc", ".git")  # all that it may write
_NEXT = {
    "restorelcc check": "is params.yaml good?",
    "restorelcc versions": "after every upgrade: the code and packages that are installed now",
    "dvc repro": "runs what changed; `restorelcc table` shows the results",
}


def add(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("init", help="Make a project in a folder: dvc.yaml and params.yaml, ready for `dvc repro`.")(init)


def init(
    folder: Annotated[Path, typer.Argument(help="the project's folder; created if it does not exist")] = Path(),
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="a model to look at and put into the grid: a folder, a GGUF file, a hub id"),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="with --model: its key in `models`")] = "mine",
    calibration: Annotated[
        str | None,
        typer.Option("--calibration", help=f"texts for pruning: a file, c4, hub:<dataset>, or {PACKAGE}  [c4]"),
    ] = None,
    instructions: Annotated[
        str | None,
        typer.Option("--instructions", help=f"pairs: a file, alpaca, hub:<dataset>, or {PACKAGE}  [alpaca]"),
    ] = None,
    heldout: Annotated[
        str | None,
        typer.Option("--heldout", help=f"texts to measure on: a file, wikitext, hub:<dataset>, {PACKAGE}  [wikitext]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout: what the model is")] = False,
) -> None:
    """Write the files, set up git and DVC where they are not, and say what comes next."""
    data = {"calibration": calibration, "instructions": instructions, "heldout": heldout}
    if model is None and (given := [role for role, source in data.items() if source is not None]):
        raise BadInput(f"init --{given[0]} is data of a model: add --model, or leave it out")
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file: give a folder")
    for file in _MADE:
        if (folder / file).exists():
            raise BadInput(f"{folder} already has {file}, which would be replaced: give another folder")
    text, found = (None, None) if model is None else _own_model(name, model, data)
    from restorelcc.pipeline.scaffold import new_project

    with _nothing_left_behind(folder):
        try:
            new_project(folder, text)
        except OSError as error:
            raise BadInput(f"{folder} cannot be written: {error.strerror}") from error
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "model": found}, indent=2, ensure_ascii=False))
        return
    if found is None:
        typer.echo(f"Created a project in {folder}. Edit its params.yaml, then run in that folder:")
        commands = _NEXT
    else:
        typer.echo(f"Created a project in {folder}, whose grid is {name}: {found['source']}")
        typer.echo("\n".join(f"    {line}" for line in _facts(found)))
        typer.echo("Run in that folder:")
        commands = {
            f"restorelcc check --model {name}": "reads all of its data, and says what is wrong with them",
            f"restorelcc plan --model {name}": "memory, disk and time of every stage",
            "dvc repro": _NEXT["dvc repro"],
        }
    width = max(map(len, commands))
    for command, what in commands.items():
        typer.echo(f"    {command:<{width}}    # {what}")


@contextmanager
def _nothing_left_behind(folder: Path) -> Iterator[None]:
    """A project that could not be made leaves the folder as it was, so that another attempt begins anew."""
    made = next((path for path in (*reversed(folder.absolute().parents), folder.absolute()) if not path.exists()), None)
    before = set() if made else set(folder.iterdir())
    kept = {path: path.read_bytes() for path in before if path.name in (".gitignore", ".dvcignore") and path.is_file()}
    try:
        yield
    except BaseException:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        else:
            for path in {folder / name for name in _OWN if (folder / name).exists()} - before:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            for path, content in kept.items():
                path.write_bytes(content)
        raise


def _own_model(alias: str, source: str, data: dict[str, str | None]) -> tuple[str, dict[str, Any]]:
    """params.yaml with the model's entry, and what was found of the model. Raises BadInput where it could not run."""
    from restorelcc.base.layout import Layout
    from restorelcc.pipeline.own_model import fitted_to, looked_at, own_entry, own_params, parsed

    entry = own_entry(source, data)
    params = parsed(own_params(alias, entry))
    found: dict[str, Any] = {"name": alias, "source": entry["source"], "data": entry["data"]}
    with tempfile.TemporaryDirectory(prefix="restorelcc-") as scratch:  # the project is not there before all is good
        layout = Layout(Path(scratch))
        facts = looked_at(params, alias, layout)
        if facts is None:
            return own_params(alias, entry), found
        text = own_params(alias, fitted_to(entry, params, facts["context"]))
        return text, found | facts | _needs(parsed(text), alias, layout)


def _needs(params: Params, alias: str, layout: Layout) -> dict[str, Any]:
    """What `restorelcc plan` says in all, and the memory of this machine."""
    import psutil

    from restorelcc.pipeline.plan import known_of, planned

    cells = [params.cell(alias, pruning, None) for pruning in params.grid.pruning]
    plan = planned(params, cells, layout, known_of(params, alias, layout))
    facts = {key: plan[key] for key in ("parameters", "device", "dtype", "restored")}
    facts |= {"memory": max(row["memory"] for row in plan["stages"]), "main_memory": psutil.virtual_memory().total}
    return facts | {"seconds": sum(row["seconds"] for row in plan["stages"])}


def _facts(found: dict[str, Any]) -> list[str]:
    """What was found of the model, and what it takes."""
    from restorelcc.cli.plan_table import size_text, time_text

    told = [f"{role}: {source}" for role, source in found["data"].items()]
    if "family" not in found:
        return [*told, "the hub was not asked: check and plan do that"]
    context = f", sequences of {found['context']:,} at most" if found["context"] else ""
    memory, own = found["memory"], found["main_memory"]
    fits = "which this machine has" if memory <= own else "more than this machine has"
    return [
        f"{found['family']}, {found['parameters'] / 1e6:,.1f} M parameters, runs in {found['dtype']} on the "
        f"{found['device']}; a tokenizer of {found['tokens']:,} tokens{context}",
        *told,
        f"needs {size_text(memory)} of memory at once, {fits} ({size_text(own)}), and about "
        f"{time_text(found['seconds'])}",
        f"restored, it is kept as {found['restored']}",
    ]
