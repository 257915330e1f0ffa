"""Where the data of evaluation tasks come from: local copies laid out as on the hub, or else the hub or its cache."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from restorelcc.base.data_bytes import opened
from restorelcc.base.data_files import FORMATS, READERS, data_files
from restorelcc.base.errors import BadInput, first_line
from restorelcc.base.package_data import is_of_the_package
from restorelcc.stages.evaluate.package_data import package_copies

_SPLITS = {"valid": "validation", "val": "validation", "dev": "validation"}


@contextmanager
def local_data(
    datasets: Any, task: str, local: str | dict[str, str] | None, cache: str | None, root: Path | None = None
) -> Iterator[None]:
    """While tasks are built, data sets with a local copy are read from it; the others come from the hub or its cache.

    lm-eval has one place where it loads data, `datasets.load_dataset`, and no setting for where they lie.
    """
    original: Callable[..., Any] = datasets.load_dataset

    def load_dataset(path: str, name: str | None = None, **arguments: Any) -> Any:
        folder = local_copy(local, task, path, name)
        try:
            if folder is None:
                # The user's files are read again each time: the library's cache knows them by name, size and time.
                own = {"cache_dir": cache} if path in READERS or Path(path).exists() else {}
                if path in READERS and root is not None:
                    base, beside = root, arguments.get("data_dir")
                    if isinstance(beside, str) and "://" not in beside:
                        base = root / Path(beside).expanduser()
                        arguments["data_dir"] = str(base)
                    if arguments.get("data_files") is not None:
                        arguments["data_files"] = _rooted(arguments["data_files"], base, task or path)
                return original(path=path, name=name, **own | arguments)
            kind, files = split_files(folder, name)
            loaded = original(path=kind, data_files=files, cache_dir=cache)
            # Tasks name a split for few-shot examples; zero-shot reads none of it, so a copy may do without (and
            # `check_shots` refuses one that is asked for examples).
            return loaded if "train" in loaded else _with_empty_split(loaded, "train")
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise BadInput(
                f"the data set {path}{f' ({name})' if name else ''} of task {task or path!r} cannot be loaded "
                f"({reason}): give a local copy of it in evaluate.datasets, or access to the hub; paths in "
                "data_files start at the folder of params.yaml"
            ) from error

    datasets.load_dataset = load_dataset
    try:
        yield
    finally:
        datasets.load_dataset = original


def _rooted(files: Any, root: Path, task: str) -> Any:
    """data_files whose relative paths count from `root`: the project's folder, or the task's data_dir. Addresses stay
    as they are, and a folder becomes the list of its files. Raises BadInput for a file that holds no data by its first
    bytes."""
    if isinstance(files, dict):
        return {split: _rooted(each, root, task) for split, each in files.items()}
    if isinstance(files, list | tuple):
        return [_rooted(each, root, task) for each in files]
    if "://" in str(files):
        return files
    path = root / Path(str(files)).expanduser()
    found = data_files(f"data_files of task {task!r}", path) if path.is_dir() else [path]
    for file in found:
        if file.is_file():
            with opened(file, "parquet" if file.suffix == ".parquet" else "txt"):
                pass  # refuses a pointer of Git LFS, an archive or a web page by what it is
    return str(path) if found == [path] else [str(file) for file in found]


def _with_empty_split(loaded: Any, split: str) -> Any:
    loaded[split] = next(iter(loaded.values())).select(range(0))
    return loaded


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def local_copy(local: str | dict[str, str] | None, task: str, path: str, name: str | None) -> Path | None:
    """The folder that evaluate.datasets gives for a data set, by task, hub id, the id's last part, or configuration.

    A folder alone holds the copies under those names. None where nothing is given. BadInput for a folder that is not.
    """
    if local is None:
        return None
    keys = [key for key in (task, path, path.rpartition("/")[2], name) if key]
    if isinstance(local, str):
        if not Path(local).is_dir():
            raise BadInput(f"evaluate.datasets is {local!r}: there is no such folder")
        return next((Path(local) / key for key in keys if (Path(local) / key).is_dir()), None)
    by_name = {_plain(key): folder for key, folder in local.items()}
    for key in keys:
        if _plain(key) in by_name:
            folder = Path(by_name[_plain(key)])
            if not folder.is_dir():
                raise BadInput(f"evaluate.datasets.{key} is {str(folder)!r}: there is no such folder")
            return folder
    return None


def split_files(folder: Path, name: str | None) -> tuple[str, dict[str, list[str]]]:
    """(format, {split: files}) of a copy laid out as on the hub: <configuration>/<split>-*.parquet, or the same as
    .jsonl, .json or .csv, in the folder itself or its `data`. Raises BadInput when there is no such file."""
    places = [folder / name, folder / name / "data"] if name else []
    for place in [*places, folder, folder / "data"]:
        files: dict[str, list[str]] = {}
        kinds: set[str] = set()
        for path in sorted(place.glob("*.*")) if place.is_dir() else []:
            split = re.match(r"[A-Za-z_]+?(?=[-.]|$)", path.name)
            if path.suffix in FORMATS and split:
                files.setdefault(_SPLITS.get(split.group(), split.group()), []).append(str(path.absolute()))
                kinds.add(FORMATS[path.suffix])
        if len(kinds) > 1:
            raise BadInput(f"{place} holds files of several formats ({', '.join(sorted(kinds))}): keep one of them")
        if files:
            return kinds.pop(), files
    raise BadInput(
        f"{folder} holds no data file{f' of configuration {name}' if name else ''}: files are named after their split, "
        "for example validation-00000-of-00001.parquet or validation.jsonl"
    )


def datasets_under(
    root: Path, datasets: str | dict[str, str] | None, tasks: Iterable[str] = (), cache: str | None = None
) -> str | dict[str, str] | None:
    """evaluate.datasets with paths that count from the folder of params.yaml. Of a package the data of `tasks` are laid
    out in `cache`."""
    if isinstance(datasets, str) and is_of_the_package(datasets):
        return package_copies(set(tasks), Path(cache)) if cache else None
    if isinstance(datasets, dict):
        return {name: str(root / Path(folder).expanduser()) for name, folder in datasets.items()}
    return None if datasets is None else str(root / Path(datasets).expanduser())
