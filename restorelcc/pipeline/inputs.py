"""The stage `inputs`, by DVC for one model and by everything that starts a run for all models of the grid."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from restorelcc.base.cell import Cell
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.processes import started_by_dvc
from restorelcc.pipeline.added import added_here, differing
from restorelcc.pipeline.params import Params
from restorelcc.pipeline.running import held_lock, stage_lock
from restorelcc.pipeline.workspace import at_work, wait_for_others
from restorelcc.stages.inputs.stage import lay_out, run, unlike

STAGE = "inputs"


def lay_out_inputs(params: Params, alias: str, layout: Layout, *, wait: bool = True) -> None:
    """Make DVC watch the files that a model names. Raises BadInput for one that is missing.

    What a run at work here depends on stays until it has ended: DVC would record its result as one of the change. A
    stage, whose own run is at work, does not wait. wait: False where DVC's lock is held, for which the run may wait;
    then nothing is done.
    """
    cell = Cell(alias)
    depended_on = not started_by_dvc() and layout.inputs(cell).is_dir()
    while depended_on and unlike(cell, params.named(alias), layout) and at_work(layout.root):
        if not wait:
            return
        wait_for_others(layout.root, STAGE)
    with held_lock(stage_lock(layout, STAGE, cell)):
        run(cell, params.named(alias), layout)


def lay_out_what_is_here(params: Params, layout: Layout, *, wait: bool = True) -> list[str]:
    """`lay_out_inputs` for every model of the grid whose files are on this machine; a sentence for each other one."""
    absent = []
    for alias in params.grid.model:
        try:
            lay_out_inputs(params, alias, layout, wait=wait)
        except BadInput as error:
            absent.append(f"{error}; results computed from it can be read here, but not computed again")
    return absent


def edited_sources(params: Params, layout: Layout) -> list[str]:
    """A sentence for each file and folder of `dvc add` that a model of the grid names and that is not what its .dvc
    file names: an edit, of which others would get the old version, or another version."""
    root = layout.root.resolve()
    added = [each for each in added_here(root) if not each.is_import]
    if not added:
        return []
    named = [path for alias in params.grid.model for path in _paths_of(params, alias, root)]
    wanted = [each for each in added if any(map(each.meets, named))]
    if not wanted:
        return []
    from dvc.exceptions import DvcException

    try:
        return [each.in_words(root) for each in differing(wanted, root)]
    except (DvcException, OSError):
        return []  # DVC says itself what it cannot read


def _paths_of(params: Params, alias: str, root: Path) -> list[Path]:
    """The files and folders that a model names; none where one of them is not there."""
    try:
        found = [path for path in lay_out(alias, params.named(alias), root).values() if isinstance(path, Path)]
    except BadInput:
        return []
    return [Path(os.path.normpath(path)) for path in found]


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
