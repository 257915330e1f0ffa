"""Which lm-eval tasks are run, and how each of them is scored."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from restorelcc.base.documents import AGAIN, read_document, read_yaml
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.manifest import check_file
from restorelcc.base.task_code import check_trusted, code_in_task
from restorelcc.stages.evaluate.confined import sandboxed, without_code
from restorelcc.stages.evaluate.local_data import local_data
from restorelcc.stages.evaluate.scoring import scoring
from restorelcc.stages.evaluate.task_check import (
    check_file_of_task,
    check_files,
    check_folder,
    check_items,
    check_shots,
    unusable,
)

PRESETS = {
    "paper-7": ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"),
}
_PRESET_METRICS = {"paper-7": "acc"}
# Where lm-eval keeps them: to read the files of all its tasks takes it ten seconds, in every process that evaluates.
_PRESET_FOLDERS = {
    "boolq": "super_glue/boolq",
    "rte": "glue/rte",
    "hellaswag": "hellaswag",
    "winogrande": "winogrande",
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "openbookqa": "openbookqa",
}
EMBEDDED = "embedded"
FEWSHOT_SEED = 0


@dataclass(frozen=True)
class Asked:
    """One task, group or folder of task files, or the config of a task; None: the task's own metric, shots as usual."""

    task: str | dict[str, Any]
    metric: str | None = None
    shots: int | None = None
    limit: int | None = None
    trusted: bool = False  # that code of the user's own task files may run

    @property
    def name(self) -> str:
        return self.task if isinstance(self.task, str) else str(self.task["task"])


def selected_tasks(folder: Path, tasks: Sequence[str | dict[str, Any]], root: Path, cache: str) -> list[Asked]:
    """What `tasks` of a model's entry asks for: the corpus's own task files, which are always measured, as configs, and
    names and folders (counted from `root`) for lm-eval to find.

    Presets are spelled out: `paper-7` is seven names, `embedded` the tasks that the corpus itself brings.
    Raises BadInput for a task that is asked for twice in different ways.
    """
    listed = read_document(folder / "tasks.json")
    asked = [_asked(task) for task in tasks]
    own = Asked(EMBEDDED)
    spelled_out: dict[str, Asked] = {}
    for each in asked:
        if each.name == EMBEDDED:
            own = each
            continue
        metric = each.metric or _PRESET_METRICS.get(each.name)
        for name in PRESETS.get(each.name, (_found(each.name, root),)):
            spelled_out[name] = _merged(replace(each, task=name, metric=metric), spelled_out.get(name))
    if own in asked and not listed["embedded"]:
        raise BadInput("models.<name>.tasks has 'embedded', the tasks of the microworld: this model has another source")
    files = [replace(own, task=_own_task(folder / f"{name}.yaml", cache)) for name in listed["embedded"]]
    return files + list(spelled_out.values())


def _found(name: str, root: Path) -> str:
    """A folder or file of tasks where it lies; any other name as it is."""
    path = root / Path(name).expanduser()
    if path.exists():
        return str(path)
    if "/" in name or name.startswith("~") or name.endswith((".yaml", ".yml")):
        raise BadInput(
            f"models.<name>.tasks has {name!r}, which is not a folder or file of tasks: correct the path, which is "
            "relative to the folder of params.yaml"
        )
    return name


def own_tasks(asked: Sequence[Asked]) -> list[Asked]:
    """Those that are read from the user's own files. Raises BadInput for a name that lm-eval does not know."""
    own = [each for each in asked if Path(each.name).exists()]
    if len(own) < len(asked):
        folders = tuple(each.name for each in own if Path(each.name).is_dir())
        everywhere = _manager(folders, [each.name for each in asked if each not in own])
        for each in asked:
            if each in own:
                continue
            if each.name not in everywhere.all_tasks:
                raise BadInput(_unknown(each.name, everywhere.all_tasks))
            path = everywhere.task_index[each.name].yaml_path
            if path is not None and any(Path(path).is_relative_to(Path(folder)) for folder in folders):
                own.append(each)
    return own


def _asked(task: str | dict[str, Any] | Asked) -> Asked:
    """A task of tasks.json: a name, or a name with settings; or the config of one."""
    if isinstance(task, Asked):
        return task
    if isinstance(task, dict) and "name" in task:
        shots, trusted = task.get("num_fewshot"), bool(task.get("trusted"))
        return Asked(task["name"], task.get("metric"), shots, task.get("limit"), trusted)
    return Asked(task)


def _merged(asked: Asked, before: Asked | None) -> Asked:
    if before is None:
        return asked
    both = (("metric", asked.metric, before.metric), ("num_fewshot", asked.shots, before.shots))
    for key, one, other in (*both, ("limit", asked.limit, before.limit)):
        if one != other and one is not None and other is not None:
            raise BadInput(
                f"models.<name>.tasks asks for {asked.name!r} twice, with {key} {other} and with {one}: keep one"
            )
    shots = before.shots if asked.shots is None else asked.shots
    metric, limit = asked.metric or before.metric, asked.limit or before.limit
    return replace(asked, metric=metric, shots=shots, limit=limit, trusted=asked.trusted or before.trusted)


def _own_task(path: Path, cache: str) -> dict[str, Any]:
    items = path.with_suffix(".parquet")
    check_file(path)
    check_file(items)  # the library reads it, and looks at no digest
    task = read_yaml(path)
    if not isinstance(task, dict):
        raise BadInput(f"{path} is not a task file: {AGAIN}")
    # The file's data path is relative to the project's folder; here the data are next to the file.
    task["dataset_kwargs"] = {"data_files": {"test": str(items)}, "cache_dir": cache}
    return task


def load_tasks(
    tasks: Sequence[str | dict[str, Any] | Asked],
    local: str | dict[str, str] | None = None,
    cache: str | None = None,
    root: Path | None = None,
) -> dict[str, Any]:
    """lm-eval's task objects with their data, what `lm_eval.evaluate` takes; their `scoring` and `limits`. Empty
    without tasks.

    A task is a config, a name, or a folder of task files (all of its tasks). Tasks of lm-eval are zero-shot unless
    asked otherwise; those of a folder have the shots that their files say. local: where copies of data sets lie.
    root: the folder that relative data_files count from.
    Raises BadInput for a task that lm-eval does not know, naming the nearest, for data that cannot be had, for a metric
    that the task does not have, for a task whose first items cannot be rendered, and for task files of the user's own
    that run code and are not trusted. Templates are rendered in a sandbox.
    """
    if not tasks:
        return {}
    asked = [_asked(task) for task in tasks]
    _check_code(asked)
    with sandboxed():
        return _loaded(asked, local, cache, root)


def _check_code(tasks: Sequence[Asked]) -> None:
    """Raises BadInput for task files that run code and are not trusted; nothing of theirs has been imported then."""
    for each in tasks:
        if isinstance(each.task, dict):
            if found := code_in_task(each.task):
                raise BadInput(f"the evaluation task {each.name!r} of the corpus has {found}, which is never run")
        elif Path(each.name).exists():
            check_trusted("models.<name>.tasks", [Path(each.name)], each.trusted)


def _loaded(
    tasks: Sequence[Asked], local: str | dict[str, str] | None, cache: str | None, root: Path | None
) -> dict[str, Any]:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}, "scoring": {}, "limits": {}}
    asked_for: dict[str, Asked] = {}
    origins: dict[str, str] = {}
    for asked, file, manager in _resolved(list(tasks)):
        stock = file is None and isinstance(asked.task, str)
        confined = without_code(asked.name, trusted=stock or asked.trusted)
        with confined, local_data(datasets, asked.name, local, cache, root):
            try:
                found = manager.load([asked.task])
            except (BadInput, StageFailed):
                raise
            except Exception as error:  # whatever a task file, its functions or its data make lm-eval say
                raise unusable(asked.name, file, error) from error
        for name in found["tasks"]:
            _check_origin(name, _origin(name, asked, file, manager), origins)
        for kind, content in found.items():
            loaded[kind].update(content)
        for name, task in found["tasks"].items():
            asked_for[name] = _merged(replace(asked, task=name), asked_for.get(name))
            loaded["limits"][name] = asked_for[name].limit
            loaded["scoring"][name] = _prepared(task, name, asked_for[name], file)
    return loaded


def _origin(name: str, asked: Asked, file: str | None, manager: Any) -> str:
    """The file that a task is read from."""
    if isinstance(asked.task, dict):
        return "the tasks of the corpus itself"
    path = manager.task_index[name].yaml_path if name in manager.task_index else None
    return str(Path(path or file or asked.name).resolve())


def _check_origin(name: str, origin: str, origins: dict[str, str]) -> None:
    """Raises BadInput for a second task of a name: results go by names, and one of the two would vanish."""
    if (before := origins.setdefault(name, origin)) != origin:
        raise BadInput(
            f"models.<name>.tasks has two tasks with the name {name!r}, of {before} and of {origin}: rename one of them"
        )


def _prepared(task: Any, name: str, asked: Asked, file: str | None) -> Any:
    """Set the shots of a task, render its first items, and say how it is scored."""
    shots = asked.shots if asked.shots is not None else (task.get_config("num_fewshot") or 0) if file else 0
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    check_shots(task, name, shots)
    return scoring(task, name, asked.metric, shots, check_items(task, name, file, shots))


def _resolved(tasks: list[Asked]) -> Iterator[tuple[Asked, str | None, Any]]:
    """Every task with the file that says what it is, where it is the user's own, and lm-eval's index that knows it."""
    from lm_eval.tasks import TaskManager

    folders = tuple(each.name for each in tasks if isinstance(each.task, str) and Path(each.task).is_dir())
    trusted = {each.name for each in tasks if each.trusted}
    names = [each.name for each in tasks if isinstance(each.task, str) and each.name not in folders]
    everywhere = _manager(folders, names)
    for each in tasks:
        if each.name in folders:
            manager = TaskManager(include_path=each.name, include_defaults=False)
            check_folder(each.name, manager.all_subtasks)
            for name in manager.all_subtasks:
                yield replace(each, task=name), str(manager.task_index[name].yaml_path), manager
        elif isinstance(each.task, dict):
            yield each, None, everywhere
        elif each.name in everywhere.all_tasks:
            path = everywhere.task_index[each.name].yaml_path
            mine = [folder for folder in folders if path is not None and Path(path).is_relative_to(Path(folder))]
            each = replace(each, trusted=bool(mine) and trusted.issuperset(mine))
            yield each, str(path) if mine else None, everywhere
        elif Path(each.name).is_file():
            check_file_of_task(Path(each.name))
            yield each, each.name, everywhere
        else:
            raise BadInput(_unknown(each.name, everywhere.all_tasks))


def _manager(folders: tuple[str, ...], names: Sequence[str]) -> Any:
    """lm-eval's index of task files, as far as these names and folders need it. Raises BadInput for a file in the
    folders that cannot be one."""
    for folder in folders:
        check_files(folder)
    if set(names) <= set(_PRESET_FOLDERS):
        stock = tuple(dict.fromkeys(_PRESET_FOLDERS[name] for name in names))
        index = _index(folders, stock)
        if set(names) <= set(index.all_tasks):
            return index
    return _index(folders, None)


@lru_cache(maxsize=4)
def _index(folders: tuple[str, ...], stock: tuple[str, ...] | None) -> Any:
    """Of the tasks in the folders, and of lm-eval's own: those in some of its folders, or (None) all of them."""
    import lm_eval.tasks

    home = Path(lm_eval.tasks.__file__).parent
    paths = [*(str(home / name) for name in stock or ()), *folders]
    return lm_eval.tasks.TaskManager(include_path=paths or None, include_defaults=stock is None)


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, [*known, *PRESETS, EMBEDDED], n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "`lm_eval ls tasks` lists them all"
    return (
        f"models.<name>.tasks has {name!r}, which is neither a task known to lm-eval, nor a preset "
        f"({', '.join([*PRESETS, EMBEDDED])}), nor a folder of task files: {hint}"
    )
