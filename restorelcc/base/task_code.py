"""Is a folder of evaluation tasks data alone, or does it run code of its maker's?

lm-eval runs what a task file calls as soon as it reads the file. Here it is told from the text of the files alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from restorelcc.base.errors import BadInput, one_line

TASK_FILES = (".yaml", ".yml")
_PROGRAMS = (".py", ".pyc", ".so", ".pyd")
_PLAIN = ("null", "bool", "int", "float", "binary", "timestamp", "omap", "pairs", "set", "str", "seq", "map", "merge")
_STANDARD = {f"tag:yaml.org,2002:{name}" for name in _PLAIN}
# Keys of a task whose values are code, or the name of code that the library fetches and runs.
_CALLS = ("class", "custom_dataset", "use_prompt")
_TRUE = ("hf_evaluate", "trust_remote_code")


def check_trusted(key: str, paths: Iterable[Path], trusted: bool) -> None:
    """Raises BadInput for task files that run code where the user has not said that they may."""
    if trusted:
        return
    for path in paths:
        if found := code_in(path):
            raise BadInput(
                f"{key}: {found}, which runs as you and may do whatever you may: read the folder, and if you trust its "
                f"maker name it as {{name: {one_line(path)}, trusted: true}}"
            )


def code_in(path: Path) -> str | None:
    """The first thing in a task file, or in a folder of them and what they include, that would run; None for data."""
    seen: set[str] = set()
    for file in _files_of(path):
        if file.suffix.lower() in _PROGRAMS:
            return f"{one_line(file)} is a program"
        if file.suffix in TASK_FILES and (found := _code_of_file(file, seen)):
            return found
    return None


def _files_of(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for at, folders, files in os.walk(path, followlinks=True):
        folders[:] = [name for name in sorted(folders) if name not in ("__pycache__", ".git", ".ipynb_checkpoints")]
        if len(Path(at).relative_to(path).parts) > 32:
            raise BadInput(f"{one_line(at)} is nested without end: a link in it leads back into the folder")
        yield from (Path(at) / name for name in sorted(files))


def _code_of_file(file: Path, seen: set[str]) -> str | None:
    """Of a file and of those that it includes."""
    if (place := os.path.realpath(file)) in seen:
        return None
    seen.add(place)
    try:
        text = file.read_bytes()
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        foreign = next(_foreign_tags(node), None) if node is not None else None
        if foreign is not None:
            return f"the task file {one_line(file)} has {one_line(foreign)}"
        content = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None  # lm-eval cannot read it either, and `check_folder` says what is wrong
    if (key := code_in_task(content)) is not None:
        return f"the task file {one_line(file)} has {key}"
    includes = content.get("include") if isinstance(content, dict) else None
    for name in includes if isinstance(includes, list) else [includes]:
        if isinstance(name, str) and (found := _code_of_file(file.parent / name, seen)):
            return found
    return None


def _foreign_tags(node: yaml.Node) -> Iterator[str]:
    """Tags that plain YAML does not have: `!function utils.f`, however it is spelled."""
    todo, seen = [node], set()
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if each.tag and each.tag not in _STANDARD:
            yield f"{each.tag} {each.value if isinstance(each, yaml.ScalarNode) else ''}".strip()[:80]
        for part in each.value if isinstance(each, yaml.CollectionNode) else ():
            todo += part if isinstance(part, tuple) else (part,)


def code_in_task(content: Any) -> str | None:
    """The first key of a parsed task, at any depth, that names code to be run or fetched; None when there is none."""
    if isinstance(content, list):
        return next(filter(None, map(code_in_task, content)), None)
    if not isinstance(content, dict):
        return None
    for key, value in content.items():
        if (key in _CALLS and value) or (key in _TRUE and value):
            return f"{key}: {one_line(value)[:60]}"
        if key == "metric" and isinstance(value, str) and not value.replace("_", "").isalnum():
            return f"metric: {one_line(value)[:60]}"
        if (found := code_in_task(value)) is not None:
            return found
    return None
