"""Which of the user's files and folders a setting of params.yaml refers to.

Only names and task files are read here, never a weight or a row: this runs before every `make repro`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from restorelcc.base.data_files import FOR_PEOPLE, READERS
from restorelcc.base.documents import StrictLoader, parse_yaml, read_text
from restorelcc.base.errors import BadInput

_SKIPPED = {"__pycache__", ".git", ".ipynb_checkpoints"}
_TASK_FILES = (".yaml", ".yml")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_READ_ANYWAY = (*_TASK_FILES, ".py")  # whatever they are called
_NOT_READ = re.compile(rf"{FOR_PEOPLE}|.*\.pyc", re.IGNORECASE)
_FUNCTION = re.compile(r"!function\s+[\"']?([\w.]+)\.\w+")


def absolute(root: Path, text: str) -> Path:
    """The absolute form of a path of params.yaml."""
    return root / Path(text).expanduser()


def source_folder(key: str, source: str, root: Path) -> Path | None:
    """The folder that a source of a model or an encoder names; None for what may be a hub id, `name` or `org/name`.

    Raises BadInput for what is neither: taken for a hub id, a folder that is missing would be another's model.
    """
    path = absolute(root, source)
    if path.is_dir():
        return path
    if path.is_file():
        raise BadInput(f"{key} is {source!r}, a file: give the folder that it lies in")
    if not _HUB_ID.fullmatch(source):
        raise BadInput(f"{key} is {source!r}, and there is no such folder: correct the path, or give a hub id")
    return None


def files_below(folder: Path) -> list[Path]:
    """Every file in a folder and below, without hidden ones, caches, readmes and licences."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part in _SKIPPED or part.startswith(".") for part in parts)
        passed_over = path.suffix not in _READ_ANYWAY and _NOT_READ.fullmatch(path.name)
        if not hidden and not passed_over and path.is_file():
            found.append(path)
    return found


def task_paths(key: str, tasks: Iterable[str], root: Path) -> list[Path]:
    """Those of the tasks that are a path: a folder of task files, or one of them. Raises BadInput where it is not."""
    found = []
    for name in tasks:
        path = absolute(root, name)
        if path.is_dir() or (path.is_file() and path.suffix in _TASK_FILES):
            found.append(path)
        elif "/" in name or name.endswith(_TASK_FILES):
            raise BadInput(f"{key} has {name!r}, and there is no such folder or task file: correct the path")
    return found


class _Reference(NamedTuple):
    """A path that a task file names: it may be a file, a folder, a pattern, or not there."""

    path: Path
    is_included: bool = False
    is_needed: bool = False
    is_whole: bool = False  # named by a whole path
    is_data: bool = False  # counted from the project's folder, where it is not whole


def referred_files(paths: list[Path], root: Path, named: set[Path] | None = None) -> list[Path]:
    """What task files, or those in folders of tasks, refer to outside these folders, and what that refers to.

    `named`: takes every path that is named relatively, whether it is there or not: a file, a folder or a pattern. Then
    nothing has to be there. Without it, raises BadInput for a file to include, or of data, that is not.
    """
    inside = _given(paths)
    known, found = set(inside), []
    for task_file, is_elsewhere, reference in _references(inside, root):
        path = reference.path
        if named is None and reference.is_needed and not path.exists():
            raise BadInput(f"the task file {task_file} names {path}, which does not exist: correct the path")
        if named is not None and not reference.is_whole and not is_elsewhere:
            named.add(path)
        if path.is_file() and path.resolve() not in known:
            known.add(path.resolve())
            found.append(path)
    return sorted(found)


def check_whole(key: str, paths: list[Path]) -> None:
    """Raises BadInput for task files, or those in folders of tasks, that name their data from the project's folder, and
    so mean other files, or none, in another project."""
    for task_file, _, reference in _references(_given(paths), Path.cwd()):
        if reference.is_data and not reference.is_whole and (reference.is_needed or reference.path.exists()):
            raise BadInput(
                f"{key}: the task file {task_file} names its data by a path that counts from a project's folder, and "
                f"the work folder is another one: write the whole path, {os.path.normpath(reference.path)}"
            )


def _given(paths: list[Path]) -> dict[Path, Path]:
    """The files that are given, and those in folders that are, by where they really lie."""
    return {path.resolve(): path for given in paths for path in ([given] if given.is_file() else files_below(given))}


def _references(inside: dict[Path, Path], root: Path) -> Iterator[tuple[Path, bool, _Reference]]:
    """Everything that task files name, and those that they include: the file that names it, whether that is one that
    a whole path leads to, and what it names."""
    read = set[Path]()
    todo = [(path, False) for path in inside.values() if path.suffix in _TASK_FILES]
    while todo:
        task_file, is_elsewhere = todo.pop()
        if task_file.resolve() in read:
            continue
        read.add(task_file.resolve())
        for reference in _referred(task_file, root):
            yield task_file, is_elsewhere, reference
            path = reference.path
            # lm-eval's own templates have no suffix.
            if path.is_file() and (reference.is_included or path.suffix in _TASK_FILES):
                todo.append((path, reference.is_whole or is_elsewhere))


def _referred(task_file: Path, root: Path) -> Iterator[_Reference]:
    """Files that a task file includes (beside itself), calls as `!function` (beside itself, with what that may import
    from beside it) or reads data from (counted from the project's folder, or from `data_dir` where that is).

    What cannot be parsed refers to nothing; the evaluation says what is wrong.
    """
    try:
        text = read_text(task_file)
        content = parse_yaml(text, str(task_file), _Untagged)
    except BadInput:
        return
    for module in _FUNCTION.findall(text):
        called = task_file.parent / f"{module.replace('.', '/')}.py"
        yield _Reference(called)
        if called.is_file():
            yield from (_Reference(path) for path in files_below(called.parent) if path.suffix == ".py")
    mappings = list(_mappings_of(content))
    reads_files = any(name in READERS for where in mappings for name in _texts(where.get("dataset_path")))
    for where in mappings:
        for name in _texts(where.get("include")):
            yield _Reference(task_file.parent / name, is_included=True, is_needed=True, is_whole=_is_whole(name))
        yield from _named_files(where, root)
        for key in ("data_dir", "dataset_path"):
            for name in _texts(where.get(key)):
                if key == "dataset_path" and name in READERS:  # whatever else may be called so here
                    continue
                found = _data_at(root, name.removeprefix("file://"))
                is_data = key == "dataset_path" or reads_files  # or of a data set of the hub
                yield from (reference._replace(is_needed=False, is_data=is_data) for reference in found)


def _named_files(where: dict[str, Any], root: Path) -> Iterator[_Reference]:
    """What `data_files` names, which has to be there; addresses are not looked at."""
    beside = where.get("data_dir")
    beside = beside if isinstance(beside, str) and "://" not in beside else ""
    base = absolute(root, beside)
    for name in (name.removeprefix("file://") for name in _texts(where.get("data_files"))):
        if "://" not in name:
            found = _data_at(base, name)
            yield from (each._replace(is_whole=True) for each in found) if _is_whole(beside) else found


def _data_at(root: Path, name: str) -> Iterator[_Reference]:
    """A path of data as it is named, and the files of a folder or a pattern."""
    is_whole = _is_whole(name)
    if any(mark in name for mark in "*?["):
        base = Path(name).anchor or root
        yield _Reference(root / name, is_whole=is_whole, is_data=True)
        found = sorted(Path(base).glob(name.removeprefix(Path(name).anchor)))
    else:
        path = absolute(root, name)
        yield _Reference(path, is_needed=True, is_whole=is_whole, is_data=True)
        found = files_below(path) if path.is_dir() else []
    yield from (_Reference(path, is_whole=is_whole, is_data=True) for path in found)


def _is_whole(name: str) -> bool:
    return name.startswith(("/", "~"))


def _mappings_of(content: Any) -> Iterator[dict[str, Any]]:
    """Every mapping, at any depth."""
    if isinstance(content, dict):
        yield content
    for value in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from _mappings_of(value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


class _Untagged(StrictLoader):
    """Reads `!function module.name` as text: nothing is imported to find out what is read."""


def _plain(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> str | None:
    return loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None


_Untagged.add_multi_constructor("!", _plain)
