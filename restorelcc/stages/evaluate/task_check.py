"""Does a task work? Its items are rendered before any weight is read, so that a mistake in a task file
ends here in one sentence, not hours later in a traceback of lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from restorelcc.base.errors import BadInput, first_line

_STOCK = 3  # items rendered of a task of lm-eval; of a user's task all are
_UNREAD = {"__pycache__", ".ipynb_checkpoints"}  # folders that lm-eval passes over
_NEEDS = (
    "a task file is a .yaml with at least task, dataset_path, a test_split or validation_split, doc_to_text and "
    "doc_to_target (docs/evaluation.md)"
)
_TYPES: dict[str, type] = {
    **dict.fromkeys(("dataset_path", "dataset_name", "test_split", "validation_split", "output_type"), str),
    **dict.fromkeys(("training_split", "fewshot_split"), str),
    **{"dataset_kwargs": dict, "metric_list": list, "num_fewshot": int, "metadata": dict},
}
_TYPE_NAMES = {str: "a text", dict: "a mapping", list: "a list", int: "a whole number"}
_COLUMNS = ("doc_to_text", "doc_to_choice", "doc_to_target")


def check_folder(folder: str, found: Sequence[str]) -> None:
    """Raises BadInput for a folder without a task."""
    if not found:
        raise BadInput(f"the folder {folder!r} of models.<name>.tasks holds no task: {_NEEDS}")


def check_files(folder: str) -> None:
    """Raises BadInput for a file in a folder that cannot be read as YAML or has a value of the wrong type, and for two
    files with a task of the same name, of which lm-eval takes the first. Runs before lm-eval indexes the folder."""
    files: dict[str, Path] = {}
    for path in sorted(Path(folder).rglob("*.yaml")):
        if not _UNREAD.isdisjoint(path.parts):
            continue
        content = check_file_of_task(path)
        name = content.get("task")
        if isinstance(name, str) and "group" not in content and files.setdefault(name, path) != path:
            raise BadInput(
                f"models.<name>.tasks has two tasks with the name {name!r}, of {files[name]} and of {path}: rename one "
                "of them"
            )


def check_file_of_task(path: Path) -> dict[str, Any]:
    """The content of a task file, with what it includes. Raises BadInput for one that cannot be read, or that lacks
    what a task needs."""
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        content = load_yaml(path, resolve_func=False)
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise BadInput(
            f"the task file {path} of models.<name>.tasks cannot be read ({' '.join(str(error).split())}): "
            "correct it or remove it"
        ) from error
    if not isinstance(content.get("task", ""), str | list):
        raise BadInput(f"the task file {path} has task: {content['task']}, where a name is expected: put it in quotes")
    for key, kind in _TYPES.items():
        if content.get(key) is not None and (
            not isinstance(content[key], kind) or (isinstance(content[key], bool) and kind is int)
        ):
            raise BadInput(
                f"the task file {path} has {key}: {str(content[key])[:40]}, where {_TYPE_NAMES[kind]} is expected: "
                "correct it"
            )
    if isinstance(content.get("task"), str) and "dataset_path" in content and "class" not in content:
        if not (content.get("test_split") or content.get("validation_split")):
            raise BadInput(f"the task file {path} names neither a test_split nor a validation_split: add one of them")
        absent = [key for key in ("doc_to_text", "doc_to_target") if content.get(key) is None]
        if absent and content.get("process_docs") is None:
            raise BadInput(f"the task file {path} has no {absent[0]}: {_NEEDS}")
    return dict(content)


def unusable(name: str, file: str | None, error: Exception) -> BadInput:
    """What lm-eval could not make of a task, as a sentence. file: of the user's own task."""
    if type(error).__name__ == "DatasetGenerationError" and isinstance(error.__cause__, Exception):
        error = error.__cause__  # which says why
    reason = first_line(error)
    if isinstance(error, KeyError) and error.args[0] is None:
        reason = "a metric in its metric_list is not known to lm-eval, or has no aggregation"
    elif "malformed node or string" in reason:
        reason = "doc_to_choice is neither a column of its data, nor a list, nor a template that gives one"
    elif isinstance(error, StopIteration):
        reason = "there is no item at all"
    elif isinstance(error, KeyError):
        reason = f"its data have no split or column {error.args[0]!r}"
    elif isinstance(error, IndexError):
        reason = "an item has no choices, its answer is not among them, or there is no item at all"
    if file is None:
        return BadInput(
            f"evaluation task {name!r} cannot be set up ({reason}): give a copy of its data laid out as on the hub, "
            "with all its splits and columns, or choose another task"
        )
    return BadInput(f"evaluation task {name!r} in {file} cannot be set up ({reason}): correct the file or its data")


def check_shots(task: Any, name: str, shots: int) -> None:
    """Raises BadInput where examples are asked for that are not there, or that are the very items asked."""
    sampler, config = getattr(task, "sampler", None), task.config
    if shots == 0 or sampler is None:
        return
    examples, evaluated = config.fewshot_config, config.test_split or config.validation_split
    source = examples.split or config.training_split or config.validation_split or config.test_split
    left_out = examples.split == config.test_split  # where lm-eval keeps an item from being its own example
    if len(sampler.df) < shots + left_out:
        raise BadInput(
            f"evaluation task {name!r} has num_fewshot {shots}, and there are {len(sampler.df)} examples in its split "
            f"{source!r}: give its data with that split, or set num_fewshot to 0"
        )
    if examples.samples is None and source == evaluated and not left_out:
        raise BadInput(
            f"evaluation task {name!r} has num_fewshot {shots} and takes its examples from {evaluated!r}, the split "
            "that it is evaluated on, so that an item could be its own example: name a training_split or a "
            "fewshot_split, or set num_fewshot to 0"
        )


def check_items(task: Any, name: str, file: str | None, shots: int) -> tuple[str, ...] | None:
    """Render the items, of a task of lm-eval the first; returns the metrics that they will have.

    None where only the run can tell.

    Raises BadInput, with the number of the item, for one that cannot be rendered or has nothing to choose from.
    """
    for flag, reason in (("UNSAFE_CODE", "runs code that a model wrote"), ("MULTIMODAL", "needs images or sound")):
        if getattr(task, flag, False):
            raise BadInput(f"evaluation task {name!r} {reason}, which is not supported here: choose another task")
    if file is not None:
        _check_columns(task, name, file)
    printed = _templates(task) if file is not None else {}
    metrics: tuple[str, ...] | None = None
    for number, document in enumerate(islice(task.eval_docs, _STOCK if file is None else None), start=1):
        try:
            for key, template in printed.items():
                _check_printed(key, template, document)
            context = task.fewshot_context(doc=document, num_fewshot=shots)
            requests = task.construct_requests(doc=document, ctx=context, metadata=(name, number, 1))
            choices = task.doc_to_choice(document) if _has_choices(task) else None
            if choices is not None and len(choices) == 0:
                raise ValueError("it has no choices")
            if file is not None and choices is not None and (blank := _blank(choices)) is not None:
                raise ValueError(f"choice {blank + 1} is empty")
            if file is not None and choices is not None and task.OUTPUT_TYPE == "multiple_choice":
                _check_answer(task, document, list(choices))
        except Exception as error:
            raise unusable(f"{name} (item {number})", file, error) from error
        if number == 1:
            metrics = _metrics(task, document, requests if isinstance(requests, list) else [requests])
    return metrics


def _blank(choices: Sequence[Any]) -> int | None:
    """Position of an empty choice, which no model can be asked for."""
    return next((at for at, each in enumerate(choices) if isinstance(each, str) and not each.strip()), None)


def _templates(task: Any) -> dict[str, Any]:
    """The templates of a task file, which refuse to print a value that is null, where lm-eval would print None."""
    from lm_eval.utils import env

    def filled(value: Any) -> Any:
        if value is None:
            raise ValueError("a value that it prints is null")
        return value

    strict = env.overlay(finalize=filled)
    written = {key: getattr(task.config, key, None) for key in _COLUMNS}
    return {key: strict.from_string(text) for key, text in written.items() if isinstance(text, str) and "{{" in text}


def _check_printed(key: str, template: Any, document: Any) -> None:
    try:
        template.render(**document)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _check_answer(task: Any, document: Any, choices: list[Any]) -> None:
    """Raises ValueError for an answer that is none of the choices, which lm-eval counts as wrong whatever is said."""
    answer = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    for each in answer if isinstance(answer, list) else [answer]:
        if isinstance(each, int) and not 0 <= each < len(choices):
            raise ValueError(f"its answer is {each}, and there are {len(choices)} choices, counted from 0")
        if isinstance(each, str) and each not in choices:
            raise ValueError(f"its answer {each[:60]!r} is none of its choices")


def _has_choices(task: Any) -> bool:
    return getattr(task.config, "doc_to_choice", None) is not None


def _check_columns(task: Any, name: str, file: str) -> None:
    """Raises BadInput for a single word in place of a template that is no column, which lm-eval takes for the text
    itself, and for any item without choices or with an answer beyond them."""
    columns = list(getattr(task, "features", ()))
    for key in _COLUMNS:
        value = getattr(task.config, key, None)
        if isinstance(value, str) and value.isidentifier() and value not in columns:
            raise BadInput(
                f"evaluation task {name!r} in {file} has {key}: {value}, which is not a column of its data "
                f"({', '.join(columns)}): name one of them, or write a template with {{{{...}}}}"
            )
    named, answers = task.config.doc_to_choice, task.config.doc_to_target
    if not isinstance(named, str) or named not in columns:
        return
    for number, document in enumerate(task.eval_docs, start=1):
        choices = document[named]
        answer = document.get(answers) if isinstance(answers, str) and answers in columns else None
        if not isinstance(choices, list) or not choices:
            raise unusable(f"{name} (item {number})", file, ValueError(f"its column {named!r} holds no choices"))
        if isinstance(answer, int) and not 0 <= answer < len(choices):
            reason = f"its answer is {answer}, and there are {len(choices)} choices, counted from 0"
            raise unusable(f"{name} (item {number})", file, ValueError(reason))


def _metrics(task: Any, document: Any, requests: list[Any]) -> tuple[str, ...] | None:
    """What the task makes of made-up answers of a model."""
    answers = {"loglikelihood": (-1.0, False), "loglikelihood_rolling": -1.0, "generate_until": ""}
    try:
        return tuple(task.process_results(document, [answers[request.request_type] for request in requests]))
    except Exception:  # code of the task that cannot take an empty answer: the run will tell
        return None
