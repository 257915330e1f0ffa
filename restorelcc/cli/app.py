"""The command line: every stage is a command; the other files of this folder add more.

Exit codes: 0 done, 1 the computation failed, 2 bad input (base/errors.py).
"""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from restorelcc import __version__
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout, project_of
from restorelcc.base.messages import choose, note, say
from restorelcc.base.processes import started_by_dvc
from restorelcc.cli import (
    check,
    compare,
    compensation,
    doctor,
    engines,
    export,
    graph,
    init,
    inspect,
    packed,
    plan,
    restore,
    run,
    share,
    verify,
)
from restorelcc.pipeline.stages import (
    PER_MODEL,
    PER_PRUNING,
    PER_RATIO,
    PER_RECOVERY,
    STAGES,
    TOGETHER,
    Stage,
    grid_cells,
)

_EPILOG = """Examples:

restorelcc restore --dense meta-llama/Llama-3.2-1B --pruned my-pruned-model --out restored

restorelcc check --model mine && dvc repro && restorelcc table

restorelcc export --model tiny --pruning wanda-0.5 --head-ratio 0.25 --out restored"""

app = typer.Typer(
    help="Give pruned language models their accuracy back.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


ModelOption = Annotated[str, typer.Option("--model", "-m", help="key of `models` in params.yaml")]
PruningOption = Annotated[
    str,
    typer.Option("--pruning", "-p", help="<pruner>-<sparsity>, e.g. wanda-0.5 or sparsegpt-2of4; or external-<name>"),
]
RatioOption = Annotated[
    str,
    # The second spelling is that of dvc.yaml, where DVC makes options of the names of the grid's axes.
    typer.Option("--head-ratio", "--head_ratio", "-r", help="share of the heads to compensate, e.g. 0.10"),
]
RecoveryOption = Annotated[
    str,
    typer.Option("--recovery", "-b", help="another way to recover, e.g. random; docs/recovery-methods.md has all"),
]
ParamsOption = Annotated[Path, typer.Option("--params", help="the parameter file; data/ is in the same folder")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, overrides the file; repeatable")]
ResultsOption = Annotated[bool, typer.Option("--json", help="JSON on stdout: what report/results.json holds")]
_PARAMS = Path("params.yaml")
# How --help groups the verbs, in this order.
PANELS = {
    "Run": ("restore", "run", "init", "check", "plan", "versions"),
    "Look at results and checkpoints": ("table", "compare", "inspect", "graph"),
    "Ship": ("export", "pack", "unpack", "verify", "compensation", "engines"),
    "Work as a team": ("share", "push", "pull", "doctor"),
    "Stages, which `dvc repro` runs": ("inputs", *STAGES, "report"),
}
_OLD_VERBS = {"baseline": "recover", "evaluate_baseline": "evaluate_recovered"}


class _StageCommand(TyperCommand):
    """A stage's verb, which also knows the old names of itself and of its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        from restorelcc.pipeline.renamed import new_option, say_renamed

        old = str(ctx.info_name)
        if old in _OLD_VERBS:
            say_renamed(f"restorelcc {old}", f"restorelcc {_OLD_VERBS[old]}")
        return super().parse_args(ctx, list(map(new_option, args)))


def _run(name: str, params_file: Path, overrides: list[str] | None, **names: str) -> None:
    from restorelcc.base.documents import write_json
    from restorelcc.base.progress import is_first_process, notice
    from restorelcc.base.publish import published
    from restorelcc.pipeline.as_recorded import as_recorded
    from restorelcc.pipeline.inputs import lay_out_inputs
    from restorelcc.pipeline.outcome import duration, last_time, outcome, place
    from restorelcc.pipeline.params import load_params
    from restorelcc.pipeline.running import stage_running
    from restorelcc.pipeline.versions import check_versions

    params = load_params(params_file, tuple(overrides or ()))
    cell = params.cell(names["model"], names.get("pruning"), names.get("head_ratio"), names.get("recovery"))
    stage = STAGES[name]
    layout, started = Layout(project_of(params_file)), time.perf_counter()
    check_versions(layout.root)
    before = last_time(layout, name, cell)
    if before:
        notice(place(params, name, cell), f"started, {before}")
    recorded = started_by_dvc() and is_first_process()
    given = (params_file, tuple(overrides or ()), layout, name, cell)
    with stage_running(layout, name, cell):
        if started_by_dvc() and stage.folder == "evaluate":  # a task file may name others than when `inputs` ran
            lay_out_inputs(params, cell.model, layout)
        with as_recorded(*given) if recorded else nullcontext():
            run = stage.imported()
            entry = params.models[cell.model].part_for(stage.folder)
            run(cell, params.section(cell.model, stage.folder), entry, layout)
    if is_first_process():
        seconds = time.perf_counter() - started
        with published(layout, layout.log(name, cell)) as (path,):  # the report reads it: all of it, or none
            write_json(path, {"stage": name, "cell": str(cell), "seconds": seconds})
        notice(place(params, name, cell), f"{outcome(name, layout, cell)} ({duration(seconds)})")


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"restorelcc {__version__}")
        raise typer.Exit


@app.callback()
def _check_processes(
    context: typer.Context,
    _: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_say_version, is_eager=True)
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="also what libraries warn of")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="results and errors, nothing else")] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="notices and errors as JSON, a line each, on stderr")
    ] = False,
) -> None:
    if verbose and quiet:
        raise BadInput("--verbose and --quiet exclude each other: leave one out")
    choose(verbose=verbose, quiet=quiet, as_json=log_json)
    from restorelcc.base.progress import process_count

    if process_count() > 1 and context.invoked_subcommand not in TOGETHER:
        raise BadInput(
            f"{context.invoked_subcommand} runs in one process, and {process_count()} were launched: several work "
            f"together on {' and '.join(TOGETHER)} only"
        )


def _add_verb(name: str, stage: Stage) -> None:
    def per_model(model: ModelOption, params: ParamsOption = _PARAMS, set_: SetOption = None) -> None:
        _run(name, params, set_, model=model)

    def per_pruning(
        model: ModelOption, pruning: PruningOption, params: ParamsOption = _PARAMS, set_: SetOption = None
    ) -> None:
        _run(name, params, set_, model=model, pruning=pruning)

    def per_ratio(
        model: ModelOption,
        pruning: PruningOption,
        head_ratio: RatioOption,
        params: ParamsOption = _PARAMS,
        set_: SetOption = None,
    ) -> None:
        _run(name, params, set_, model=model, pruning=pruning, head_ratio=head_ratio)

    def per_recovery(
        model: ModelOption,
        pruning: PruningOption,
        recovery: RecoveryOption,
        params: ParamsOption = _PARAMS,
        set_: SetOption = None,
    ) -> None:
        _run(name, params, set_, model=model, pruning=pruning, recovery=recovery)

    of: dict[tuple[str, ...], Any] = {PER_MODEL: per_model, PER_PRUNING: per_pruning}
    of |= {PER_RATIO: per_ratio, PER_RECOVERY: per_recovery}
    command = of[stage.axes]
    app.command(name, cls=_StageCommand, help=stage.gives)(command)
    aliases = [name.replace("_", "-")] if "_" in name else []
    for alias in aliases + [old for old, new in _OLD_VERBS.items() if new == name]:
        app.command(alias, cls=_StageCommand, help=stage.gives, hidden=True)(command)


@app.command(
    "inputs",
    help="Links to the files that a model's entry names, so that DVC watches them.",
)
def inputs(
    model: Annotated[str | None, typer.Option("--model", "-m", help="key of `models`; all of the grid")] = None,
    params: ParamsOption = _PARAMS,
    set_: SetOption = None,
) -> None:
    from restorelcc.pipeline.inputs import lay_out_inputs
    from restorelcc.pipeline.params import load_params
    from restorelcc.pipeline.renamed import rename_in_file

    if params.is_file():
        for sentence in rename_in_file(params):
            say(f"restorelcc: {params}: {sentence}", "warning")
    checked, layout = load_params(params, tuple(set_ or ())), Layout(project_of(params))
    for alias in [model] if model else checked.grid.model:
        checked.cell(alias, None, None)
        lay_out_inputs(checked, alias, layout)


@app.command("report", help="The result table and the web page of the whole grid.")
def report(params: ParamsOption = _PARAMS, set_: SetOption = None, as_json: ResultsOption = False) -> None:
    from restorelcc.pipeline.one_run import settings_of_this_run
    from restorelcc.pipeline.params import load_params
    from restorelcc.pipeline.running import stage_running
    from restorelcc.pipeline.stale import remove_stale_metrics_if_alone
    from restorelcc.pipeline.versions import check_versions
    from restorelcc.stages.report.stage import run

    checked, layout = load_params(params, tuple(set_ or ())), Layout(project_of(params))
    settings = (*settings_of_this_run(), *(set_ or ()))
    check_versions(layout.root)
    with stage_running(layout, "report"):
        if not settings:  # a view of another grid, for once, leaves everything as it is
            remove_stale_metrics_if_alone(layout, checked.grid.model_dump())
        results = run(grid_cells(checked.grid), checked.report, layout, settings)
    if results.missing:
        say(f"restorelcc: the report lacks {', '.join(results.missing)}: run dvc repro", "warning")
    if as_json or os.environ.get("RESTORELCC_TABLE") != "0":  # whoever runs DVC may print it last
        from restorelcc.stages.report.terminal import print_results

        print_results(layout.report, as_json=as_json)


@app.command("table", help="Print the result table of the last report.")
def table(
    params: ParamsOption = _PARAMS,
    as_json: ResultsOption = False,
) -> None:
    from restorelcc.stages.report.results import changed_since, gone_since
    from restorelcc.stages.report.terminal import print_results

    layout = Layout(_root(params))
    changed, gone = changed_since(layout), gone_since(layout)  # refuses damaged results before anything is printed
    print_results(layout.report, as_json=as_json)
    if changed:
        note(f"this report is older than the results of {', '.join(changed)}: run dvc repro report")
    if gone:
        note(f"the project has no results of {', '.join(gone)} any more: run dvc repro")


@app.command(
    "versions",
    help="Note the installed versions of packages, where DVC watches them.",
)
def versions(params: ParamsOption = _PARAMS) -> None:
    from restorelcc.pipeline.versions import write_versions

    for line in write_versions(_root(params)):
        say(line)


def _root(params: Path) -> Path:
    """The project's folder. Raises BadInput for a parameter file that is not there."""
    if not params.is_file():
        raise BadInput(f"{params} does not exist: run in the project's folder or give --params FILE")
    return project_of(params)


def _in_panels() -> None:
    """Sort what was registered into the panels of --help. A verb that no panel has is an error of this file."""
    order = {verb: (position, panel) for position, (panel, verb) in enumerate(_places())}
    for group in app.registered_groups:
        group.rich_help_panel = order[str(group.name)][1]
    for command in app.registered_commands:
        command.rich_help_panel = None if command.hidden else order[str(command.name)][1]
    app.registered_commands.sort(key=lambda command: order.get(str(command.name), (len(order), ""))[0])


def _places() -> list[tuple[str, str]]:
    return [(panel, verb) for panel, verbs in PANELS.items() for verb in verbs]


_VERBS = (
    *(restore, run, init, check, plan, compare, inspect, graph),
    *(doctor, export, packed, verify, compensation, engines, share),
)
for _verb_file in _VERBS:
    _verb_file.add(app)
for _name, _stage in STAGES.items():
    _add_verb(_name, _stage)
_in_panels()
