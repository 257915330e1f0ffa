"""Which files of a user are read for a setting of params.yaml: their names in a stage's folder of links, and where
they lie.

Only names and task files are read here, never a weight or a row: this runs before every `make repro`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from restorelcc.core.errors import BadInput
from restorelcc.io.stock_files import TOKENIZER_FILES

Links = dict[str, Path]  # name below the folder of links -> the file

# What loading a checkpoint may read. Not its licence, its readme or weights in other formats.
_MODEL = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
_CHAT_TEMPLATES = "additional_chat_templates/*.jinja"
_FORMATS = (".parquet", ".jsonl", ".json", ".csv")
_FUNCTION = re.compile(r"!function\s+[\"']?([\w.]+)\.\w+")
_SKIPPED = {"__pycache__", ".git", ".ipynb_checkpoints"}
_NOT_READ = (".md", ".pyc")


def named_file(key: str, text: str, root: Path) -> Path:
    """A data file by its path, counted from the project's folder. Raises BadInput where there is none."""
    path = absolute(root, text)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise BadInput(f"data file {path} {what}: correct its path under {key}")
    return path


def absolute(root: Path, text: str) -> Path:
    """Where a path of params.yaml lies."""
    return root / Path(text).expanduser()


def model_files(folder: Path) -> Links:
    """Everything that loading a checkpoint folder may read: weights, indexes, config, tokenizer, chat templates."""
    found = [path for pattern in (*_MODEL, _CHAT_TEMPLATES) for path in folder.glob(pattern)]
    return {str(path.relative_to(folder)): path for path in sorted(found) if path.is_file()}


def text_files(folder: Path) -> Links:
    """The part of `model_files` that turns text into tokens: config, tokenizer, chat templates."""
    known = ("config.json", *TOKENIZER_FILES)
    return {name: path for name, path in model_files(folder).items() if name in known or name.endswith(".jinja")}


def encoder_files(folder: Path) -> Links:
    """What a sentence encoder's folder is read for: its modules lie in folders of their own."""
    return {
        name: path for name, path in files_below(folder).items() if path.suffix in (".safetensors", ".json", ".txt")
    }


def files_below(folder: Path) -> Links:
    """Every file in a folder and below, without hidden ones, caches and readmes."""
    found: Links = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part in _SKIPPED or part.startswith(".") for part in parts) or path.suffix in _NOT_READ:
            continue
        if path.is_file():
            found["/".join(parts)] = path
    return found


def task_files(tasks: Iterable[str], root: Path) -> Links:
    """The files behind the tasks that are folders or files of their own: all that lies in the folders, what their YAML
    includes or calls, and the data files it names."""
    found: Links = {}
    for number, path in enumerate(task_paths(tasks, root)):
        own = files_below(path) if path.is_dir() else {path.name: path}
        found |= {f"{number}/{name}": file for name, file in own.items()}
    _follow(found, root)
    return found


def task_paths(tasks: Iterable[str], root: Path) -> list[Path]:
    """Those of the tasks that are a path: a folder of task files, or one of them."""
    paths = (absolute(root, name) for name in tasks)
    return [path for path in paths if path.is_dir() or (path.is_file() and path.suffix in (".yaml", ".yml"))]


def _follow(found: Links, root: Path) -> None:
    """Add what task files refer to, and what that refers to, outside the folders that are watched whole."""
    known = {path.resolve() for path in found.values()}
    todo = [path for path in found.values() if path.suffix in (".yaml", ".yml")]
    while todo:
        for path in _referred(todo.pop(), root):
            if path.resolve() in known or not path.is_file():
                continue
            known.add(path.resolve())
            found[f"beside/{len(found)}-{path.name}"] = path
            if path.suffix in (".yaml", ".yml"):
                todo.append(path)


def _referred(task_file: Path, root: Path) -> Iterator[Path]:
    """Files that a task file includes (beside itself), calls as `!function` (beside itself) or reads data from
    (counted from the project's folder). What cannot be parsed refers to nothing; the evaluation says what is wrong."""
    try:
        text = task_file.read_text(encoding="utf-8")
        content = _Untagged(text).get_single_data()
    except (OSError, ValueError, yaml.YAMLError):
        return
    for module in _FUNCTION.findall(text):
        yield task_file.parent / f"{module.replace('.', '/')}.py"
    for value in _values_of(content, "include"):
        yield from (task_file.parent / name for name in _texts(value))
    for key in ("data_files", "data_dir", "dataset_path"):
        for value in _values_of(content, key):
            for name in _texts(value):
                yield from _data_at(root, name)


def _data_at(root: Path, name: str) -> Iterator[Path]:
    if any(mark in name for mark in "*?["):
        base = Path(name).anchor or root
        yield from sorted(Path(base).glob(name.removeprefix(Path(name).anchor)))
        return
    path = absolute(root, name)
    if path.is_dir():
        yield from (file for file in files_below(path).values() if file.suffix in (*_FORMATS, ".arrow", ".txt", ".py"))
    else:
        yield path


def _values_of(content: Any, key: str) -> Iterator[Any]:
    """Every value that stands under a key, at any depth."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name == key:
                yield value
            yield from _values_of(value, key)
    elif isinstance(content, list):
        for value in content:
            yield from _values_of(value, key)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


class _Untagged(yaml.SafeLoader):
    """Reads `!function module.name` as text: nothing is imported to find out what is read."""


def _plain(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> str | None:
    return loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None


_Untagged.add_multi_constructor("!", _plain)
