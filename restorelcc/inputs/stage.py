"""Stage `inputs`: everything of a model's entry that later stages depend on, laid out where DVC sees it change.

DVC watches files of the project. So every file of a user's gets a link in data/inputs/<model>/links/<stage>/, in the
folder of the stage that reads it, and DVC digests what the links lead to. What the entry says itself lies beside them,
for each stage the part that it uses, so that a change runs exactly the stages that it concerns.

A new file in a folder of tasks has no link yet. Such folders are therefore watched whole as well, through links to the
folders themselves, by this stage alone; it then makes the missing link.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restorelcc.core.cell import Cell
from restorelcc.core.errors import BadInput
from restorelcc.core.model_entry import is_of_the_hub
from restorelcc.core.progress import notice
from restorelcc.inputs.files import (
    Links,
    absolute,
    encoder_files,
    files_below,
    model_files,
    named_file,
    task_files,
    task_paths,
    text_files,
)
from restorelcc.inputs.named import Named
from restorelcc.io.documents import json_text
from restorelcc.io.layout import Layout
from restorelcc.io.scratch import published

STAGES = ("corpus", "dense", "capture", "extract", "probe", "compensate", "baseline", "evaluate")  # and prune
UNUSED = "unused.json"  # DVC warns of an empty folder
AUTO_ENCODER = "auto"


@dataclass
class Laid:
    """What a folder of links holds: documents by name, links by name, and the folders to be watched whole."""

    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    links: Links = field(default_factory=dict)
    watched: list[Path] = field(default_factory=list)

    def put(self, stage: str, role: str, source: str | None, files: Links) -> None:
        """The files of one role of a stage; where they are on the hub, or nowhere, its source alone."""
        self.documents[f"{stage}/{role}.json"] = {"source": source, "files": len(files)}
        self.links |= {f"{stage}/{role}/{name}": path.absolute() for name, path in files.items()}


def run(cell: Cell, named: Named, layout: Layout) -> bool:
    """Write data/inputs/<model>/; what is right already stays as it is. Returns whether anything changed.

    Raises BadInput for a file that is not there, naming the key and the path.
    """
    laid = lay_out(cell.model, named, layout.root)
    changed = difference(cell, laid, layout) is not None
    if changed:
        with published(layout, layout.input_links(cell)) as (folder,):
            _write(folder, laid)
    for number, slot in enumerate(layout.watched_folders(cell)):
        _watch(slot, laid.watched[number] if number < len(laid.watched) else None, layout)
    slots = len(layout.watched_folders(cell))
    if len(laid.watched) > slots:
        names = ", ".join(map(str, laid.watched[slots:]))
        notice("inputs", f"new files in {names} are seen by `restorelcc inputs` and `make repro`, not by plain `dvc`")
    return changed


def lay_out(alias: str, named: Named, root: Path) -> Laid:
    """What data/inputs/<alias>/ has to hold now. Raises BadInput for a data file that is not there."""
    laid, entry = Laid(), named.entry
    for stage in STAGES:
        laid.documents[f"{stage}/settings.json"] = entry.settings_for(stage)
    for pruning in named.prunings:
        laid.documents[f"prune/{pruning}/settings.json"] = entry.settings_for("prune")
        source = named.external.get(pruning)
        laid.put(f"prune/{pruning}", "checkpoint", source, _of_folder(source, root, model_files))
    _lay_corpus(laid, alias, named, root)
    laid.put("dense", "model", entry.source, _of_folder(entry.source, root, model_files))
    tasks = entry.task_names
    laid.put("evaluate", "tasks", None, task_files(tasks, root))
    laid.watched += [path for path in task_paths(tasks, root) if path.is_dir()]
    for name, text in sorted(_named_folders(named.datasets).items()):
        folder = absolute(root, text)
        laid.put("evaluate", f"datasets-{name}", text, files_below(folder) if folder.is_dir() else {})
        laid.watched += [folder] if folder.is_dir() else []
    return laid


def _lay_corpus(laid: Laid, alias: str, named: Named, root: Path) -> None:
    data, source = named.entry.data, named.entry.source
    for role in ("calibration", "instructions", "heldout"):
        text = getattr(data, role, None)
        files: Links = {}
        if text is not None and not is_of_the_hub(text):
            path = named_file(f"models.{alias}.data.{role}", text, root)
            files = {path.name: path}
        laid.put("corpus", role, text, files)
    laid.put("corpus", "tokenizer", source, _of_folder(source, root, text_files))
    encoder = None if named.encoder == AUTO_ENCODER else named.encoder
    laid.put("corpus", "encoder", named.encoder, _of_folder(encoder, root, encoder_files))


def _of_folder(source: str | None, root: Path, files: Any) -> Links:
    """The files of a source that is a folder; none of one that is a hub id."""
    folder = absolute(root, source) if source else None
    found: Links = files(folder) if folder is not None and folder.is_dir() else {}
    return found


def _named_folders(datasets: str | dict[str, str] | None) -> dict[str, str]:
    if datasets is None:
        return {}
    if isinstance(datasets, str):
        return {"all": datasets}
    return {name.replace("/", "--"): folder for name, folder in datasets.items()}


def difference(cell: Cell, laid: Laid, layout: Layout) -> str | None:
    """The first way in which data/inputs/<model>/links is not what it has to be; None when it is."""
    folder = layout.input_links(cell)
    there = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_symlink() or path.is_file()}
    wanted = {**laid.documents, **laid.links}
    for name in sorted(wanted.keys() - there.keys()):
        return f"{laid.links.get(name, name)} is new"
    for name in sorted(there.keys() - wanted.keys()):
        return f"{there[name].readlink() if there[name].is_symlink() else name} is gone"
    for name, path in laid.links.items():
        if not there[name].is_symlink() or there[name].readlink() != path:
            return f"{path} took another's place"
    for name, content in laid.documents.items():
        if there[name].is_symlink() or there[name].read_text(encoding="utf-8") != json_text(content):
            return f"what params.yaml says for {name.partition('/')[0]} changed"
    return None


def _write(folder: Path, laid: Laid) -> None:
    for name, content in laid.documents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json_text(content), encoding="utf-8")
    for name, target in laid.links.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)


def _watch(slot: Path, target: Path | None, layout: Layout) -> None:
    """Make a slot the link to a folder, or a folder of its own that says it is not used."""
    if target is not None and slot.is_symlink() and slot.readlink() == target.absolute():
        return
    if target is None and (slot / UNUSED).is_file() and not slot.is_symlink():
        return
    with published(layout, slot) as (path,):
        if slot.is_symlink():
            slot.unlink()
        if target is not None:
            path.symlink_to(target.absolute())
        else:
            path.mkdir()
            (path / UNUSED).write_text(json_text({}), encoding="utf-8")


def check_in_step(cell: Cell, named: Named, layout: Layout) -> None:
    """Raises BadInput when files came or went since the links were made: a stage would read what DVC did not see."""
    if not layout.input_links(cell).is_dir():
        return
    found = difference(cell, lay_out(cell.model, named, layout.root), layout)
    if found is not None:
        raise BadInput(f"{found} since the stage inputs@{cell.model} ran: run `restorelcc inputs`, then `dvc repro`")
