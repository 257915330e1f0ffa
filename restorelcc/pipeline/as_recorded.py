"""A stage's result is of what DVC records with it. DVC notes parameters, files and code as they are when the stage has
ended, while the stage has read them before: what was changed in between would be recorded as what the result is of."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from restorelcc.base.cell import Cell
from restorelcc.base.digest import file_digest
from restorelcc.base.documents import json_text
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.layout import Layout
from restorelcc.pipeline.params import load_params
from restorelcc.pipeline.running import stage_name
from restorelcc.pipeline.stages import STAGES
from restorelcc.pipeline.versions import FOLDER
from restorelcc.stages.inputs.files import files_below

# What a stage reads of the user's files, by their names below data/inputs/<model>; by the stage's folder.
READ: dict[str, tuple[str, ...]] = {
    "corpus": ("calibration", "instructions", "heldout", "encoder", "tokenizer"),
    "dense": ("model",),
    "prune": ("external/{pruning}",),
    "evaluate": ("tasks-1", "tasks-2", "beside"),
}
# The files of versions/ that a stage depends on; those that are not here: `numerics`.
VERSIONS: dict[str, tuple[str, ...]] = {"corpus": ("numerics", "corpus"), "evaluate": ("numerics", "evaluate")}
_PACKAGE = Path(__file__).parents[1]
_STEERING = ("cli", "pipeline", "release")  # folders of the package that no result depends on
_SMALL = 2**20  # bytes; of a larger file, and of code, size and time say whether it was changed


@contextmanager
def as_recorded(
    params_file: Path, overrides: tuple[str, ...], layout: Layout, stage: str, cell: Cell
) -> Iterator[None]:
    """Raises StageFailed at the end when what the stage uses has changed in the meantime; and at once when its model's
    entry has, since the stage `inputs` laid it out: DVC would record that one."""

    def seen(given: dict[str, Any]) -> dict[str, str]:
        settings = {str(params_file): json_text(given)} if given else {}
        return settings | _files(layout, stage, cell) | _code()

    now = _given(params_file, overrides, stage, cell)
    before = seen(now)
    laid_out, folder = layout.inputs(Cell(cell.model)) / "settings", STAGES[stage].folder
    if now and (path := laid_out / f"{folder}.json").is_file() and path.read_text("utf-8") != json_text(now["entry"]):
        raise StageFailed(
            f"models.{cell.model} in {params_file} is not what was laid out for this run: the file was edited since, "
            f"or another run has settings of its own. DVC would record what {stage_name(stage, cell)} gives as the "
            "result of the other: run it again"
        )
    yield
    after = seen(_given(params_file, overrides, stage, cell))
    loaded = {getattr(module, "__file__", None) for module in tuple(sys.modules.values())}
    for name in (*before, *(set(after) - set(before))):
        of_code = name.endswith(".py") and Path(name).is_relative_to(_PACKAGE)
        if before.get(name) != after.get(name) and (not of_code or name in loaded):
            own = stage_name(stage, cell)
            raise StageFailed(
                f"{name} was changed while {own} ran, and DVC would record the result as one of the change: run it "
                f"again, or put back what it was and keep the result by `dvc commit --force {own}`"
            )


def _given(params_file: Path, overrides: tuple[str, ...], stage: str, cell: Cell) -> dict[str, Any]:
    """What the stage is given of params.yaml: its section, and its part of the model's entry; nothing where the file is
    being edited, or the model was taken out."""
    folder = STAGES[stage].folder
    try:
        params = load_params(params_file, overrides)
        section = params.section(cell.model, folder).model_dump(mode="json")
        return {"section": section, "entry": params.models[cell.model].settings_for(folder)}
    except (BadInput, KeyError):
        return {}


def _files(layout: Layout, stage: str, cell: Cell) -> dict[str, str]:
    """What the stage depends on below data/inputs, its part of the entry as it was laid out too, and in versions/."""
    folder, laid_out = STAGES[stage].folder, layout.inputs(Cell(cell.model))
    names = (*READ.get(folder, ()), f"settings/{folder}.json")
    tops = [laid_out / name.format(pruning=cell.pruning) for name in names]
    tops += [layout.root / FOLDER / group for group in VERSIONS.get(folder, ("numerics",))]
    found = {}
    for top in tops:
        below = files_below(top) if top.is_dir() else [top]  # without the caches that Python writes beside a task
        for path in (path for path in below if path.is_file()):
            small = path.stat().st_size < _SMALL
            found[str(path.resolve())] = file_digest(path) if small else _state(path)
    return found


def _code() -> dict[str, str]:
    paths = (path for path in _PACKAGE.rglob("*.py") if path.relative_to(_PACKAGE).parts[0] not in _STEERING)
    return {str(path): _state(path) for path in paths}


def _state(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"
