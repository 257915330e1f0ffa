"""The settings that a cell was made with, as dvc.lock records them: params.yaml may have been edited since, and a run
may have had settings of its own.

An entry of dvc.lock counts where digests lead to it: from the result that is here to what its stage read, from there to
the stages that wrote that, and so on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from restorelcc.base.cell import Cell
from restorelcc.base.documents import json_text, parse_json
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import over
from restorelcc.pipeline.inputs import STAGE as INPUTS
from restorelcc.pipeline.lockfile import file_md5, read_lock
from restorelcc.pipeline.params import Params
from restorelcc.pipeline.running import stage_name
from restorelcc.pipeline.stages import STAGES

Entry = dict[str, Any]  # of dvc.lock


def made_with(cell: Cell, params: Params, layout: Layout) -> Callable[[str, str], Any]:
    """A function of a model and a section: the section as every stage of it ran that the cell's result was made by.

    It gives None where dvc.lock does not say so, or says it of other files than those that are here.
    """
    ran = _led_to(cell, layout.root)

    def section(alias: str, name: str) -> Any:
        own = [stage_name(stage, _part(cell, stage)) for stage in STAGES if STAGES[stage].folder == name]
        found = [_section(params, alias, name, ran[each], layout) for each in own if each in ran]
        agree = len(found) == len(own) and all(each == found[0] for each in found)
        return found[0] if agree else None

    return section


def _part(cell: Cell, stage: str) -> Cell:
    """What of a cell the name of a stage has."""
    return Cell(**{axis: getattr(cell, axis) for axis in STAGES[stage].axes})


def _led_to(cell: Cell, root: Path) -> dict[str, Entry]:
    """The stages that the result of a cell goes back to, by name; none where it is not the one that dvc.lock has."""
    lock, stage = read_lock(root) or {}, "compensate" if cell.recovery is None else "recover"
    wrote = {
        out["path"]: (name, out.get("md5"))
        for name, entry in lock.items()
        if not name.startswith(f"{INPUTS}@")
        for out in entry.get("outs", [])
    }
    last = stage_name(stage, _part(cell, stage))
    is_here = all(out.get("md5") == _md5(root / out["path"]) for out in lock.get(last, {}).get("outs", []))
    todo, found = [last] if last in lock and is_here else [], dict[str, Entry]()
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = lock[name]
            todo += filter(None, (_writer(dep, wrote, root) for dep in lock[name].get("deps", [])))
    return found


def _writer(dep: Entry, wrote: dict[str, tuple[str, str | None]], root: Path) -> str | None:
    """The stage that wrote what another one read, where it is the same. Of a file in a folder that a stage wrote, both
    have to be here as they were."""
    path, md5 = dep["path"], dep.get("md5")
    for place in (path, *map(str, PurePosixPath(path).parents)):
        if place in wrote:
            name, written = wrote[place]
            same = written == md5 if place == path else (_md5(root / place), _md5(root / path)) == (written, md5)
            return name if same else None
    return None


def _md5(path: Path) -> str | None:
    """The digest that dvc.lock has for a file, or for a folder; None where there is neither."""
    if path.is_dir():
        files = sorted((str(file.relative_to(path)), file) for file in path.rglob("*") if file.is_file())
        listed = [{"md5": _md5(file), "relpath": name} for name, file in files]
        return f"{hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest()}.dir"
    return file_md5(path) if path.is_file() else None


def _section(params: Params, alias: str, name: str, entry: Entry, layout: Layout) -> Any:
    """A section as a stage ran with it: that of params.yaml, and over it the model's own."""
    given = entry.get("params", {}).get("params.yaml", {}).get(name)
    changes = _changes(params, alias, name, entry, layout)
    if given is None or changes is None:
        return None
    form = type(getattr(params, name))
    try:
        return form.model_validate(over(form.model_validate(given).model_dump(), changes))
    except ValidationError:  # of an older version
        return None


def _changes(params: Params, alias: str, name: str, entry: Entry, layout: Layout) -> dict[str, Any] | None:
    """What the model's entry put over a section; None where neither the file that the stage read nor today's entry has
    the digest that was recorded."""
    file = layout.inputs(Cell(alias)) / "settings" / f"{name}.json"
    path = file.relative_to(layout.root).as_posix()
    recorded = next((dep.get("md5") for dep in entry.get("deps", []) if dep["path"] == path), None)
    today = json_text(params.models[alias].settings_for(name)).encode()
    for content in (file.read_bytes() if file.is_file() else b"", today):
        if hashlib.md5(content, usedforsecurity=False).hexdigest() == recorded:
            changes: dict[str, Any] = parse_json(content, path)["section"]
            return changes
    return None
