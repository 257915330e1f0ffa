"""Stage `inputs`: everything of a model's entry that later stages depend on, laid out where DVC sees it change.

DVC watches files of the project. So data/inputs/<model>/ holds a link to every file and folder of the user's, which
the stages that read it depend on: DVC digests what a link leads to. .dvcignore says which files of a folder count.
Next to the links are the entry's own settings, for each stage the part that it uses, so that a change runs exactly
the stages that it concerns.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from restorelcc.base.cell import Cell
from restorelcc.base.data_files import data_files, path_of
from restorelcc.base.documents import json_text
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import TASK_FOLDERS, Layout
from restorelcc.base.model_entry import USED_BY, is_of_the_hub
from restorelcc.base.package_data import TASKS, TEXTS, is_of_the_package, package_files
from restorelcc.base.packages import gguf_file
from restorelcc.base.prunings import EXTERNAL
from restorelcc.base.publish import put
from restorelcc.base.task_code import check_trusted
from restorelcc.base.weights import weight_files
from restorelcc.stages.inputs import Named
from restorelcc.stages.inputs.files import absolute, files_below, referred_files, source_folder, task_paths

Entries = dict[str, Path | dict[str, Any]]  # name below data/inputs/<model>: what a link leads to, or a document


def run(cell: Cell, named: Named, layout: Layout) -> None:
    """Write data/inputs/<model>/. Links and documents that are right stay; the files behind links are never changed.

    Raises BadInput for a file or folder that is not there, naming the key and the path.
    """
    entries, folder = lay_out(cell.model, named, layout.root), layout.inputs(cell)
    for path in _others(folder, entries):
        path.unlink()  # before anything is put: a link may become a folder of links
    for name, content in entries.items():
        if not is_put(folder / name, content):
            _put(folder / name, content)


def unlike(cell: Cell, named: Named, layout: Layout) -> set[Path]:
    """The links and documents that `run` would put or remove. Raises BadInput as it does."""
    entries, folder = lay_out(cell.model, named, layout.root), layout.inputs(cell)
    missing = (folder / name for name, content in entries.items() if not is_put(folder / name, content))
    return {*_others(folder, entries), *missing}


def lay_out(alias: str, named: Named, root: Path) -> Entries:
    """What data/inputs/<alias>/ has to hold now: of what is not a file here, a document says what it is."""
    entry = named.entry
    found: Entries = {f"settings/{stage}.json": entry.settings_for(stage) for stage in USED_BY}
    for role in ("calibration", "instructions", "heldout"):
        text: str | None = None if entry.data is None else entry.data.read(role)
        if text is None or is_of_the_hub(text):
            found[role] = {"source": text}
        elif is_of_the_package(text):
            asked = entry.data is not None and entry.data.writes(role)  # of the package, for questions
            files = package_files(f"models.{alias}.data.{role}", TEXTS["instructions" if asked else role])
            found |= {f"{role}/{name}": path for name, path in files.items()}
        else:
            found |= _data(role, f"models.{alias}.data.{role}", text, root)
    folders = {"model": entry.source, "tokenizer": entry.source, "encoder": named.encoder}
    folders |= {f"external/{pruning}": named.external.get(pruning) for pruning in named.prunings}
    for name, source in folders.items():
        key = _key(alias, name)
        file = gguf_file(key, source, root) if source and name in ("model", "tokenizer") else None
        path = source_folder(key, source, root) if source and file is None else None
        if file is not None:
            found[name] = file
        elif path is not None:
            if name not in ("tokenizer", "encoder"):
                weight_files(path)  # refuses a folder with two models, or without any
            found[name] = path.absolute()
        else:
            found[name] = {"source": source}
    whole = found["tokenizer"]
    if entry.writes_data and isinstance(whole, Path) and whole.is_dir():
        # What a model writes depends on its weights too. File by file: DVC follows no link in a folder to a folder.
        del found["tokenizer"]
        found |= {f"tokenizer/model/{path.relative_to(whole)}": path for path in files_below(whole)}
    return found | _tasks(alias, named, root)


def _key(alias: str, name: str) -> str:
    """The key of params.yaml that names what is laid out as data/inputs/<alias>/<name>."""
    if name.startswith("external/"):
        return f"prune.external.{alias}.{name.removeprefix(f'external/{EXTERNAL}-')}.source"
    return "corpus.encoder" if name == "encoder" else f"models.{alias}.source"


def _data(role: str, key: str, text: str, root: Path) -> Entries:
    """A link to the data file or folder; of a pattern a link to each file that it matches now."""
    path = path_of(key, text, root)
    files = [file.absolute() for file in data_files(key, path)]
    if path.is_dir():
        return {role: path.absolute()}
    if len(files) == 1:
        return {role: files[0]}
    return {f"{role}/{number:05d}-{file.name}": file for number, file in enumerate(files)}


def _tasks(alias: str, named: Named, root: Path) -> Entries:
    """Folders of tasks; and file by file what they refer to outside them, further folders, and local copies of data."""
    key, trusted = f"models.{alias}.tasks", named.entry.trusted_tasks
    paths = task_paths(key, named.entry.task_names, root)
    for name in named.entry.task_names:
        check_trusted(key, task_paths(key, [name], root), name in trusted)
    folders = [path for path in paths if path.is_dir()]
    found: Entries = {
        f"tasks-{number + 1}": folders[number].absolute() if number < len(folders) else {"source": None}
        for number in range(TASK_FOLDERS)
    }
    files = [path for path in paths if path.is_file()]
    if isinstance(named.datasets, str) and is_of_the_package(named.datasets):
        files += package_files("evaluate.datasets", TASKS).values()
    for folder in [*folders[TASK_FOLDERS:], *copies(named.datasets, root)]:
        files += files_below(folder)
    files = [path.absolute() for path in dict.fromkeys([*files, *referred_files(paths, root)])]
    found["beside/files.json"] = {"files": len(files)}
    return found | {f"beside/{number:04d}-{path.name}": path for number, path in enumerate(files)}


def copies(datasets: str | dict[str, str] | None, root: Path) -> list[Path]:
    """The folders of evaluate.datasets; none where a package has them. Raises BadInput for one that is not there."""
    if isinstance(datasets, str):
        datasets = {} if is_of_the_package(datasets) else {"": datasets}
    found = {name: absolute(root, text) for name, text in (datasets or {}).items()}
    for name, folder in found.items():
        if not folder.is_dir():
            key = f"evaluate.datasets.{name}".removesuffix(".")
            raise BadInput(
                f"{key} is {(datasets or {})[name]!r}, and there is no such folder: correct the path, or remove it"
            )
    return list(found.values())


def _others(folder: Path, entries: Entries) -> list[Path]:
    """What lies in a folder and is none of the entries."""
    return [path for path in _below(folder) if str(path.relative_to(folder)) not in entries]


def _below(folder: Path) -> list[Path]:
    """Every link and document in a folder and below; no link is followed."""
    return [
        Path(at) / name for at, folders, files in os.walk(folder) for name in (*folders, *files) if _is_leaf(at, name)
    ]


def _is_leaf(at: str, name: str) -> bool:
    path = Path(at) / name
    return path.is_symlink() or not path.is_dir()


def is_put(path: Path, content: Path | dict[str, Any]) -> bool:
    """Whether a link or document of `lay_out` is there as it has to be."""
    if isinstance(content, Path):
        return path.is_symlink() and path.readlink() == content
    return path.is_file() and not path.is_symlink() and path.read_bytes() == json_text(content).encode()


def _put(path: Path, content: Path | dict[str, Any]) -> None:
    """A link or a document, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    if isinstance(content, Path):
        scratch.symlink_to(content)
    else:
        scratch.write_text(json_text(content), encoding="utf-8")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    put(scratch, path)
