"""Which of the user's files and folders a setting of params.yaml refers to.

Only names and task files are read here, never a weight or a row: this runs before every `make repro`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from restorelcc.base.data_files import FOR_PEOPLE
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


def referred_files(paths: list[Path], root: Path) -> list[Path]:
    """What task files, or those in folders of tasks, refer to outside these folders, and what that refers to."""
    inside = {path.resolve(): path for given in paths for path in ([given] if given.is_file() else files_below(given))}
    known, found, read = set(inside), [], set()
    todo = [path for path in inside.values() if path.suffix in _TASK_FILES]
    while todo:
        task_file = todo.pop()
        if task_file.resolve() in read:
            continue
        read.add(task_file.resolve())
        for path, is_included in _referred(task_file, root):
            if not path.is_file():
                continue
            if path.resolve() not in known:
                known.add(path.resolve())
                found.append(path)
            if is_included or path.suffix in _TASK_FILES:  # lm-eval's own templates have no suffix
                todo.append(path)
    return sorted(found)


def _referred(task_file: Path, root: Path) -> Iterator[tuple[Path, bool]]:
    """Files that a task file includes (beside itself; True), calls as `!function` (beside itself, with what that may
    import from beside it) or reads data from (counted from the project's folder, or from `data_dir` where that is).

    What cannot be parsed refers to nothing; the evaluation says what is wrong. Raises BadInput for a file to include,
    or of data, that is not there.
    """
    try:
        text = read_text(task_file)
        content = parse_yaml(text, str(task_file), _Untagged)
    except BadInput:
        return
    for module in _FUNCTION.findall(text):
        called = task_file.parent / f"{module.replace('.', '/')}.py"
        yield called, False
        if called.is_file():
            yield from ((path, False) for path in files_below(called.parent) if path.suffix == ".py")
    for where in _mappings_of(content):
        yield from ((_there(task_file, task_file.parent / name), True) for name in _texts(where.get("include")))
        yield from ((_there(task_file, path), False) for path in _named_files(where, root))
        for key in ("data_dir", "dataset_path"):
            for name in _texts(where.get(key)):
                yield from ((path, False) for path in _data_at(root, name.removeprefix("file://")))


def _named_files(where: dict[str, Any], root: Path) -> list[Path]:
    """What `data_files` names, which has to be there; addresses are not looked at."""
    beside = where.get("data_dir")
    base = absolute(root, beside) if isinstance(beside, str) and "://" not in beside else root
    names = (name.removeprefix("file://") for name in _texts(where.get("data_files")))
    return [path for name in names if "://" not in name for path in _data_at(base, name)]


def _there(task_file: Path, path: Path) -> Path:
    if not path.exists():
        raise BadInput(f"the task file {task_file} names {path}, which does not exist: correct the path")
    return path


def _data_at(root: Path, name: str) -> Iterator[Path]:
    if any(mark in name for mark in "*?["):
        base = Path(name).anchor or root
        yield from sorted(Path(base).glob(name.removeprefix(Path(name).anchor)))
        return
    path = absolute(root, name)
    if path.is_dir():
        yield from files_below(path)
    else:
        yield path


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
