"""Which lm-eval tasks are run, and where their data come from."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from restorelcc.core.errors import BadInput
from restorelcc.io.documents import read_json

PRESETS = {
    "paper-7": ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"),
}
EMBEDDED = "embedded"
_FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
_SPLITS = {"valid": "validation", "val": "validation", "dev": "validation"}


def selected_tasks(folder: Path, cache: str) -> list[str | dict[str, Any]]:
    """What corpus/<model>/tasks asks for: the corpus's own task files as configs, and names for lm-eval to find.

    Presets are spelled out: `paper-7` is seven names, `embedded` the tasks that the corpus itself brings.
    """
    listed = read_json(folder / "tasks.json")
    if EMBEDDED in listed["lm_eval"] and not listed["embedded"]:
        raise BadInput("models.<name>.tasks has 'embedded', the tasks of the microworld: this model has another source")
    names = [name for name in listed["lm_eval"] if name != EMBEDDED]
    spelled_out = [task for name in names for task in PRESETS.get(name, (name,))]
    own = [_own_task(folder / f"{name}.yaml", cache) for name in listed["embedded"]]
    return own + list(dict.fromkeys(spelled_out))


def _own_task(path: Path, cache: str) -> dict[str, Any]:
    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    # The file's data path counts from the project's folder; here the data lie beside the file.
    task["dataset_kwargs"] = {"data_files": {"test": str(path.with_suffix(".parquet"))}, "cache_dir": cache}
    return task


def load_tasks(
    tasks: list[str | dict[str, Any]], local: str | dict[str, str] | None = None, cache: str | None = None
) -> dict[str, Any]:
    """lm-eval's task objects with their data, zero-shot: what `lm_eval.evaluate` takes. Empty without tasks.

    A task is a config, a name, or a folder of task files (all of its tasks). local: where copies of data sets lie.
    Raises BadInput for a task that lm-eval does not know, naming the nearest, and for data that cannot be had.
    """
    if not tasks:
        return {}
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    folders = [task for task in tasks if isinstance(task, str) and Path(task).is_dir()]
    names = [task for task in tasks if isinstance(task, str) and task not in folders]
    manager = _manager(tuple(folders), bool(names))
    for name in names:
        if name not in manager.all_tasks and not Path(name).is_file():
            raise BadInput(_unknown(name, manager.all_tasks))
    wanted: list[str | dict[str, Any]] = [task for task in tasks if task not in folders]
    if folders:
        wanted += _manager(tuple(folders), False).all_subtasks
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for task in wanted:
        name = task if isinstance(task, str) else task["task"]
        with _local_data(datasets, name, local, cache):
            try:
                found = manager.load([task])
            except KeyError as error:
                raise BadInput(
                    f"the data of task {name!r} lack {error.args[0]!r}, which its configuration asks for: give a copy "
                    "laid out as on the hub, with all its splits and columns"
                ) from error
        for kind, content in loaded.items():
            content.update(found[kind])
    for task_object in loaded["tasks"].values():
        task_object.set_config(key="num_fewshot", value=0)
        task_object.set_fewshot_seed(seed=0)
    return loaded


@lru_cache(maxsize=2)
def _manager(folders: tuple[str, ...], defaults: bool) -> Any:
    """lm-eval's index of task files; that of its own thousands takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=list(folders) or None, include_defaults=defaults)


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, [*known, *PRESETS, EMBEDDED], n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "`lm_eval ls tasks` lists them all"
    return (
        f"models.<name>.tasks has {name!r}, which is neither a task known to lm-eval, nor a preset "
        f"({', '.join([*PRESETS, EMBEDDED])}), nor a folder of task files: {hint}"
    )


@contextmanager
def _local_data(datasets: Any, task: str, local: str | dict[str, str] | None, cache: str | None) -> Iterator[None]:
    """While tasks are built, data sets with a local copy are read from it; the others come from the hub or its cache.

    lm-eval has one place where it loads data, `datasets.load_dataset`, and no setting for where they lie.
    """
    original: Callable[..., Any] = datasets.load_dataset

    def load_dataset(path: str, name: str | None = None, **arguments: Any) -> Any:
        folder = local_copy(local, task, path, name)
        try:
            if folder is None:
                return original(path=path, name=name, **arguments)
            kind, files = split_files(folder, name)
            loaded = original(path=kind, data_files=files, cache_dir=cache)
            # Tasks name a split for few-shot examples; zero-shot reads none of it, so a copy may do without.
            return loaded if "train" in loaded else _with_empty_split(loaded, "train")
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BadInput(
                f"the data set {path}{f' ({name})' if name else ''} of task {task or path!r} cannot be loaded "
                f"({reason}): give a local copy of it in evaluate.datasets, or access to the hub"
            ) from error

    datasets.load_dataset = load_dataset
    try:
        yield
    finally:
        datasets.load_dataset = original


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
            if path.suffix in _FORMATS and split:
                files.setdefault(_SPLITS.get(split.group(), split.group()), []).append(str(path.absolute()))
                kinds.add(_FORMATS[path.suffix])
        if len(kinds) > 1:
            raise BadInput(f"{place} holds files of several formats ({', '.join(sorted(kinds))}): keep one of them")
        if files:
            return kinds.pop(), files
    raise BadInput(
        f"{folder} holds no data file{f' of configuration {name}' if name else ''}: files are named after their split, "
        "for example validation-00000-of-00001.parquet or validation.jsonl"
    )
