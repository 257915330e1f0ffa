"""The command line: every stage is a command; the other files of this folder add more.

Exit codes: 0 done, 1 the computation failed, 2 bad input (base/errors.py).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from restorelcc.base.documents import write_json
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.processes import started_by_dvc
from restorelcc.base.progress import is_first_process, process_count
from restorelcc.cli import (
    check,
    compare,
    compensation,
    doctor,
    engines,
    export,
    init,
    inspect,
    packed,
    plan,
    restore,
    share,
    verify,
)
from restorelcc.pipeline.inputs import lay_out_inputs
from restorelcc.pipeline.params import load_params
from restorelcc.pipeline.renamed import rename_in_file
from restorelcc.pipeline.running import stage_running
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
from restorelcc.pipeline.stale import remove_stale_metrics
from restorelcc.pipeline.versions import check_versions, write_versions

app = typer.Typer(
    help="Restore the accuracy of pruned language models. Every stage of the pipeline is a command.",
    no_args_is_help=True,
    add_completion=False,
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
    typer.Option(
        "--recovery", "--baseline", "-b", help="another way to recover, e.g. random; docs/recovery-methods.md has all"
    ),
]
ParamsOption = Annotated[Path, typer.Option("--params", help="the parameter file; data/ is in the same folder")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, overrides the file; repeatable")]
_PARAMS = Path("params.yaml")
_OLD_VERBS = {"recover": ["baseline"], "evaluate_recovered": ["evaluate_baseline"]}


def _run(name: str, params_file: Path, overrides: list[str] | None, **names: str) -> None:
    params = load_params(params_file, tuple(overrides or ()))
    cell = params.cell(names["model"], names.get("pruning"), names.get("head_ratio"), names.get("recovery"))
    stage = STAGES[name]
    layout, started = Layout(params_file.resolve().parent), time.perf_counter()
    check_versions(layout.root)
    with stage_running(layout, name, cell):
        if started_by_dvc() and stage.folder == "evaluate":  # a task file may name others than when `inputs` ran
            lay_out_inputs(params, cell.model, layout)
        run = stage.imported()
        entry = params.models[cell.model].part_for(stage.folder)
        run(cell, params.section(cell.model, stage.folder), entry, layout)
    if is_first_process():
        write_json(layout.log(name, cell), {"stage": name, "cell": str(cell), "seconds": time.perf_counter() - started})


@app.callback()
def _check_processes(context: typer.Context) -> None:
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
    help_text = f"Stage {name}, for one {', '.join(need.replace('_', ' ') for need in stage.axes)}."
    app.command(name, help=help_text)(command)
    aliases = [name.replace("_", "-")] if "_" in name else []
    for alias in aliases + _OLD_VERBS.get(name, []):
        app.command(alias, help=help_text, hidden=True)(command)


for _name, _stage in STAGES.items():
    _add_verb(_name, _stage)


@app.command("inputs", help="Stage inputs, for one model or all of the grid: make DVC watch the files that they name.")
def inputs(
    model: Annotated[str | None, typer.Option("--model", "-m", help="key of `models`; all of the grid")] = None,
    params: ParamsOption = _PARAMS,
    set_: SetOption = None,
) -> None:
    if params.is_file():
        for sentence in rename_in_file(params):
            typer.echo(f"restorelcc: {params}: {sentence}", err=True)
    checked, layout = load_params(params, tuple(set_ or ())), Layout(params.resolve().parent)
    for alias in [model] if model else checked.grid.model:
        checked.cell(alias, None, None)
        lay_out_inputs(checked, alias, layout)


@app.command("report", help="Stage report, for the whole grid.")
def report(params: ParamsOption = _PARAMS, set_: SetOption = None) -> None:
    from restorelcc.stages.report.stage import run

    checked, layout = load_params(params, tuple(set_ or ())), Layout(params.resolve().parent)
    check_versions(layout.root)
    with stage_running(layout, "report"):
        remove_stale_metrics(layout, checked.grid.model_dump())
        results = run(grid_cells(checked.grid), checked.report, layout)
    if results.missing:
        typer.echo(f"restorelcc: the report lacks {', '.join(results.missing)}: run dvc repro", err=True)


@app.command("table", help="Print the result table of the last report.")
def table(params: ParamsOption = _PARAMS) -> None:
    from restorelcc.stages.report.results import changed_since
    from restorelcc.stages.report.terminal import print_results

    layout = Layout(params.resolve().parent)
    changed = changed_since(layout)  # refuses a result that is damaged, before anything is printed
    print_results(layout.report)
    if changed:
        typer.echo(
            f"note: this report is older than the results of {', '.join(changed)}: run dvc repro report", err=True
        )


@app.command("versions", help="Write the installed versions of packages into versions/, where DVC watches them.")
def versions(params: ParamsOption = _PARAMS) -> None:
    for line in write_versions(params.resolve().parent):
        typer.echo(line, err=True)


_VERBS = (init, check, inspect, plan, restore, export, packed, verify, compensation, engines, compare, share, doctor)
for _verb_file in _VERBS:
    _verb_file.add(app)
