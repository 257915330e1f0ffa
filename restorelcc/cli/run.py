"""`restorelcc run`: the whole grid with `dvc repro`, and settings for this one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout, project_of


def add(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("run", help="Run what changed in a project and print the table; --model, --set: for this run only.")(
        run
    )


def run(
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="key of `models`, in place of grid.model; repeatable")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.key=value; repeatable")] = None,
    params: Annotated[Path, typer.Option("--params", help="params.yaml of the project")] = Path("params.yaml"),
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout: what report/results.json holds")] = False,
) -> None:
    """Check, mend, run, print. No option changes params.yaml. One such run at a time works in a project: another one,
    with other settings, would put its own where DVC compares them."""
    root = project_of(params)
    if params.name != "params.yaml" or not (root / "dvc.yaml").is_file():
        raise BadInput(f"{params}: a project has a dvc.yaml beside its params.yaml, make one with `restorelcc init`")
    from restorelcc.base.progress import notice
    from restorelcc.base.publish import check_writable
    from restorelcc.cli.check import check
    from restorelcc.pipeline.inputs import lay_out_inputs
    from restorelcc.pipeline.params import load_params
    from restorelcc.pipeline.renamed import rename_in_file
    from restorelcc.pipeline.reproduce import StageEnded, reproduce
    from restorelcc.pipeline.running import held_lock
    from restorelcc.pipeline.versions import FOLDER, write_versions
    from restorelcc.pipeline.workspace import mend, run_lock
    from restorelcc.stages.report.terminal import print_results

    settings = (*([f"grid.model={json.dumps(model)}"] if model else []), *(set_ or []))
    checked, layout = load_params(params, settings), Layout(root)
    check_writable(layout)
    with held_lock(run_lock(root)):
        told = [*mend(root), *(rename_in_file(params)), *(write_versions(root) if (root / FOLDER).is_dir() else [])]
        for sentence in told:
            notice("run", sentence)
        check(params, list(settings), None, as_json=False)
        for alias in checked.grid.model:
            lay_out_inputs(checked, alias, layout)
        try:
            reproduce(layout, None, "run", settings)
        except StageEnded as ended:
            raise typer.Exit(ended.code) from None
        print_results(layout.report, as_json=as_json)
