"""`restorelcc check`: params.yaml and the sources of its models, and with --model a model's data, read through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.layout import Layout, project_of
from restorelcc.base.messages import note, say
from restorelcc.base.prunings import parse_pruning
from restorelcc.pipeline.stages import grid_cells

if TYPE_CHECKING:
    from restorelcc.pipeline.params import Params


def add(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(
        "check",
        help="Check params.yaml, and whether the sources of its models moved; --model: read a model's data through. "
        "Writes nothing outside of .work.",
    )(check)


def check(
    params: Annotated[Path, typer.Option("--params", help="the parameter file; data/ lies beside it")] = Path(
        "params.yaml"
    ),
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, over the file; repeatable")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="read this model's data through: what is used, and what is not")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout")] = False,
) -> None:
    """Say what is wrong before a long stage runs."""
    from restorelcc.base.publish import check_writable
    from restorelcc.pipeline.inputs import edited_sources
    from restorelcc.pipeline.named_sources import checkpoint_problems, problems
    from restorelcc.pipeline.params import hidden_changes, load_params
    from restorelcc.pipeline.versions import FOLDER, disagreements

    checked, layout = load_params(params, tuple(set_ or ())), Layout(project_of(params))
    if model is not None:
        alias = str(checked.cell(model, None, None).model)
        if found := checkpoint_problems(checked, alias, layout):
            raise BadInput(_first_of(found))
        for sentence in (*_not_exported(alias, checked, layout), *_no_device(alias, checked)):
            note(sentence)
        _read_through(checked, checked.cell(model, None, None).model, layout, as_json=as_json)
        return
    _check_lists(params)
    found = [problem for alias in checked.grid.model for problem in problems(checked, alias, layout)]
    if found:
        raise BadInput(_first_of(found))
    for alias in checked.grid.model:
        _check_files(checked, alias, layout)
    notes = [sentence for alias in checked.grid.model for sentence in _not_exported(alias, checked, layout)]
    notes += [sentence for alias in checked.grid.model for sentence in _no_device(alias, checked)]
    check_writable(layout)
    for sentence in _of_a_kill(layout):
        raise BadInput(sentence)
    if (layout.root / FOLDER).is_dir():
        notes += [f"no stage of `dvc repro` will run: {sentence}" for sentence in disagreements(layout.root)]
    cells = grid_cells(checked.grid)
    told, stale = _compared_sources(checked, layout)
    notes += [*hidden_changes(checked), *told, *edited_sources(checked, layout)]
    if as_json:
        content = {"params": str(params), "evaluated": list(map(str, cells)), "notes": notes, "stale": stale}
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        say(f"{params} is good: {len(cells)} models to evaluate")
        for sentence in notes:
            note(sentence)
    if stale:
        raise StageFailed("; ".join(stale))


def _no_device(alias: str, params: Params) -> list[str]:
    """A sentence for a GPU that a model names and this machine does not have. It is no error: results that are there
    already, or come from a remote, need none."""
    device = params.models[alias].device
    if not device.startswith("cuda"):
        return []
    from restorelcc.models.runtime import pick_device  # imports torch, which others need not wait for

    try:
        pick_device(device)
    except BadInput as error:
        told = str(error).replace("<name>", alias)
        return [f"{told}; until then only stages run whose results are there already"]
    return []


def _not_exported(alias: str, params: Params, layout: Layout) -> list[str]:
    """A sentence for every local checkpoint of a model of the grid whose result could be measured, but not exported."""
    from restorelcc.stages.inputs.files import absolute

    named = params.named(alias)
    sources = [named.entry.source, *(source for name, source in named.external.items() if name in named.prunings)]
    folders = [path for source in dict.fromkeys(sources) if (path := absolute(layout.root, source)).is_dir()]
    if not folders:
        return []
    from restorelcc.models.checkpoint_check import loaded_config  # imports torch, which others need not wait for
    from restorelcc.release.routes import check_route

    notes = []
    for folder in folders:
        try:
            check_route(loaded_config(folder))
        except BadInput as error:
            notes.append(f"models.{alias}: {folder} can be restored and measured, and not exported: {error}")
    return notes


def _of_a_kill(layout: Layout) -> list[str]:
    """What a killed process left that stops every dvc command."""
    from restorelcc.pipeline.workspace import faults

    return [f"{sentence}: run `restorelcc doctor --fix`" for sentence in faults(layout.root)]


def _check_lists(params: Path) -> None:
    """Raises BadInput for a list of the grid that dvc.yaml multiplies out and the file does not have."""
    from restorelcc.base.documents import read_yaml
    from restorelcc.pipeline.params_file import read_params
    from restorelcc.pipeline.renamed import with_new_names
    from restorelcc.pipeline.stale import missing_list

    pipeline = project_of(params) / "dvc.yaml"
    if pipeline.is_file():
        raw = read_params(params)
        with_new_names(raw)
        if (name := missing_list(read_yaml(pipeline), raw["grid"])) is not None:
            raise BadInput(f"{params}: grid.{name} is missing, which dvc.yaml multiplies out: add `{name}: []`")


def _check_files(params: Params, alias: str, layout: Layout) -> None:
    """Raises BadInput for data or tasks of the user's own that cannot be used."""
    entry = params.models[alias]
    if entry.data is None and not entry.tasks:
        return
    from restorelcc.cli.read_through import check_before_a_run  # imports torch, which others need not wait for

    check_before_a_run(params, alias, layout)


def _read_through(params: Params, alias: str, layout: Layout, *, as_json: bool) -> None:
    """Print what the data of a model hold. Raises BadInput with the first problem where there is one: of what was read,
    and if there is none, of all else that the model names."""
    from restorelcc.pipeline.named_sources import problems

    entry = params.models[alias]
    if entry.is_microworld:
        say(f"{alias} is the embedded model, which brings its data itself")
        if not entry.tasks and not as_json:
            if others := problems(params, alias, layout):
                raise BadInput(_first_of(others))
            return
    from restorelcc.cli.read_through import print_reading, read_through

    found = read_through(params, alias, layout)
    found["problems"] = found["problems"] or problems(params, alias, layout)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print_reading(found)
    if found["problems"]:
        raise BadInput(_first_of(found["problems"]))


def _first_of(found: list[str]) -> str:
    return found[0] if len(found) == 1 else f"{found[0]} (and {len(found) - 1} more)"


def _compared_sources(params: Params, layout: Layout) -> tuple[list[str], list[str]]:
    """What moved at the sources of the grid's models: sentences to know, and those that make what was computed old."""
    from restorelcc.pipeline.inputs import changed_since_the_last_run

    models, prunings = {alias: params.models[alias] for alias in params.grid.model}, params.grid.pruning
    external = any(parse_pruning(pruning).external for pruning in prunings)
    if not external and all(entry.is_microworld for entry in models.values()):
        return [], []
    from restorelcc.pipeline.sources import compare_sources  # imports pyarrow, which others need not wait for

    found = [each for alias, entry in models.items() for each in compare_sources(alias, entry, layout, prunings)]
    notes = [comparison.sentence for comparison in found if not comparison.stale]
    for alias in models:
        for what in changed_since_the_last_run(layout, alias):
            notes.append(f"models.{alias}: {what} changed: `dvc repro` runs what reads it")
    return notes, [comparison.sentence for comparison in found if comparison.stale]
