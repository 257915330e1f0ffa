"""The stage `inputs`, by DVC for one model and by everything that starts a run for all models of the grid."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from restorelcc.base.cell import Cell
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.pipeline.params import Params
from restorelcc.pipeline.running import held_lock, stage_lock
from restorelcc.stages.inputs.stage import lay_out, run

STAGE = "inputs"


def lay_out_inputs(params: Params, alias: str, layout: Layout) -> None:
    """Make DVC watch the files that a model names. Raises BadInput for one that is missing."""
    cell = Cell(alias)
    with held_lock(stage_lock(layout, STAGE, cell)):
        run(cell, params.named(alias), layout)


def lay_out_what_is_here(params: Params, layout: Layout) -> list[str]:
    """`lay_out_inputs` for every model of the grid whose files are on this machine; a sentence for each other one."""
    absent = []
    for alias in params.grid.model:
        try:
            lay_out_inputs(params, alias, layout)
        except BadInput as error:
            absent.append(f"{error}; results computed from it can be read here, but not computed again")
    return absent


def edited_sources(params: Params, layout: Layout) -> list[str]:
    """A sentence for each file and folder of `dvc add` that a model of the grid names and that is not what its .dvc
    file names any more: others would get the old one."""
    named = [path for alias in params.grid.model for path in _named(params, alias, layout.root)]
    records = sorted({record for path in named for record in _records_of(path, layout.root)})
    if not records:
        return []
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(layout.root)) as repo:
            added = [stage for record in records for stage in repo.stage.load_file(str(record)) if not stage.deps]
            edited = [out for stage in added for out in stage.outs if out.exists and out.changed_checksum()]
            return [_to_add(Path(out.fs_path), Path(out.stage.path), layout.root) for out in edited]
    except (DvcException, OSError):
        return []  # DVC says itself what it cannot read


def _to_add(path: Path, record: Path, root: Path) -> str:
    name, recorded = (os.path.relpath(each, root) for each in (path, record))
    return f"`{name}` is not what {recorded} names: run `dvc add {name}` and commit it"


def _named(params: Params, alias: str, root: Path) -> list[Path]:
    """The files and folders that a model names; none where one of them is not there."""
    try:
        return [path for path in lay_out(alias, params.named(alias), root).values() if isinstance(path, Path)]
    except BadInput:
        return []


def _records_of(path: Path, root: Path) -> list[Path]:
    """The .dvc files of a path in the project, of the folders that it lies in and of what lies in it."""
    if not path.is_relative_to(root):
        return []
    around = [each for each in (path, *path.parents) if each != root and each.is_relative_to(root)]
    found = [each.with_name(f"{each.name}.dvc") for each in around]
    return [*filter(Path.is_file, found), *(path.rglob("*.dvc") if path.is_dir() else ())]


def changed_since_the_last_run(layout: Layout, alias: str) -> list[str]:
    """The task files, encoders and local data sets of a model that changed, according to DVC, since the last run."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    folder, names = layout.inputs(Cell(alias)), ("tasks-1", "tasks-2", "beside", "encoder")
    if not folder.is_dir() or not (layout.root / "dvc.lock").is_file():
        return []
    try:
        with Repo(str(layout.root)) as repo:
            deps = [dep for stage in repo.index.stages for dep in stage.deps]
            watched = {dep.fs_path: dep for dep in deps if dep.hash_info}
            return [_led_to(folder / name) for name in names if _changed(watched.get(str(folder / name)))]
    except (DvcException, OSError):
        return []  # a stage is running, or dvc.yaml is being edited: DVC says so itself when it runs


def _changed(dep: Any) -> bool:
    return dep is not None and Path(dep.fs_path).exists() and dep.changed_checksum()


def _led_to(path: Path) -> str:
    if path.is_symlink():
        return str(path.readlink())
    return "what its tasks refer to, or which files that are,"
