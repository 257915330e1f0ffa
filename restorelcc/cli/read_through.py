"""A model's data as the stages will read them: rows, formats, lengths in tokens, overlaps, items of its task files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median_low
from typing import Any, TypeVar

import torch
from rich.console import Console

from restorelcc.base.cell import Cell
from restorelcc.base.documents import write_document
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.escaping import PlainTable, say
from restorelcc.base.layout import Layout
from restorelcc.models.response_mask import split_pairs
from restorelcc.models.text import context_length
from restorelcc.models.tokenizers import source_config
from restorelcc.pipeline.params import Params
from restorelcc.stages.corpus.fit import Fitting
from restorelcc.stages.corpus.formats import Example
from restorelcc.stages.corpus.roles import Roles
from restorelcc.stages.corpus.sources import Found, check_first_rows
from restorelcc.stages.corpus.values import normal
from restorelcc.stages.inputs.files import files_below
from restorelcc.stages.inputs.stage import Entries, is_put, lay_out
from restorelcc.stages.prune.calibration import calibration_batches

T = TypeVar("T")


def read_through(params: Params, alias: str, layout: Layout) -> dict[str, Any]:
    """{model, max_tokens, roles, calibration, overlap, tasks, notes, problems}; every problem is one sentence.

    Of the embedded model, which makes its data, only the tasks. Raises StageFailed when a hub that has to be asked
    cannot be.
    """
    entry = params.models[alias]
    if entry.is_microworld:
        asked: list[str] = []
        tasks = _tried(lambda: _task_items(params, alias, layout), asked)
        nothing: dict[str, Any] = {"max_tokens": None, "roles": {}, "tasks": tasks, "notes": [], "problems": asked}
        return {"model": alias, "source": entry.source} | nothing
    roles = Roles(params.section(alias, "corpus"), entry, layout.root, f"models.{alias}", writes=False)
    problems: list[str] = []
    notes: list[str] = []
    own = [role for role in ("calibration", "instructions") if entry.data is not None and entry.data.writes(role)]
    if own:
        notes.append(f"{' and '.join(own)}: only the questions are read; the model answers them in the stage corpus")
    fitting = _fitting(roles, problems, notes)
    roles = replace(roles, fits=fitting is not None)
    calibration = _tried(roles.calibration, problems)
    instructions = _tried(roles.instructions, problems)
    heldout = _tried(roles.heldout, problems)
    found: dict[str, Any] = {"model": alias, "source": entry.source}
    found["max_tokens"] = None if fitting is None else fitting.max_tokens
    found["roles"] = {
        "calibration": _described(calibration, fitting, _text_lengths),
        "instructions": _described(instructions, fitting, _pair_lengths),
        "heldout": _described(heldout, fitting, _text_lengths),
    }
    if calibration is not None and fitting is not None and "calibration" not in own:
        config = params.section(alias, "prune")
        of_model = source_config(f"models.{alias}", entry.source, entry.revision, layout.root)
        longest = context_length(of_model, config.sequence_length)  # as the stage has it
        config = config.model_copy(update={"sequence_length": longest})
        found["calibration"] = {"samples": config.samples, "sequence_length": config.sequence_length}
        batches = _tried(
            lambda: calibration_batches(fitting.tokenizer, calibration.items, config, torch.device("cpu")), problems
        )
        if batches is not None:
            sequences, tokens = sum(map(len, batches)), sum(batch.numel() for batch in batches)
            found["calibration"] |= {"sequences": sequences, "tokens": tokens}
    if instructions is not None and heldout is not None:
        found["overlap"] = _overlap(instructions.items, heldout.items)
    found["tasks"] = _tried(lambda: _task_items(params, alias, layout), problems)
    return found | {"notes": notes, "problems": problems}


def check_before_a_run(params: Params, alias: str, layout: Layout) -> None:
    """Raises BadInput for a model whose data or tasks cannot be used: the first rows of local data are read, and the
    items of the user's own tasks rendered. What was computed from the files as they are now is not looked at again."""
    entry, cell = params.models[alias], Cell(alias)
    inputs = lay_out(alias, params.named(alias), layout.root)
    if entry.data is not None and _is_newer(layout.inputs(cell), inputs, "corpus", layout.sources(cell)):
        check_first_rows(entry.data, f"models.{alias}", layout.root)
    from restorelcc.stages.evaluate.tasks import EMBEDDED, PRESETS

    # The others need lm-eval's index of its thousands, which takes seconds.
    known = {EMBEDDED, *PRESETS, *(name for names in PRESETS.values() for name in names)}
    if known.issuperset(entry.task_names):
        return
    if _is_newer(layout.inputs(cell), inputs, "evaluate", layout.metrics(cell)):
        _task_items(params, alias, layout)


_READ_BY = {"corpus": ("calibration", "instructions", "heldout"), "evaluate": ("tasks-", "beside/")}


def _is_newer(laid: Path, inputs: Entries, stage: str, result: Path) -> bool:
    """Whether there is no result yet, or since then a file that it depends on, or what the entry says of it, changed.

    laid: data/inputs/<model>/, where a link or document that was put later than the result tells of another entry.
    """
    if not result.is_file():
        return True
    since, names = result.stat().st_mtime_ns, (*_READ_BY[stage], f"settings/{stage}.json")
    given = {name: content for name, content in inputs.items() if name.startswith(names)}
    if any(not is_put(laid / name, each) or (laid / name).lstat().st_mtime_ns >= since for name, each in given.items()):
        return True
    paths = [path for path in given.values() if isinstance(path, Path)]
    stats = [file.stat() for path in paths for file in (files_below(path) if path.is_dir() else [path])]
    # One that was moved here keeps its time of modification.
    return any(max(stat.st_mtime_ns, stat.st_ctime_ns) >= since for stat in stats)


def _tried(read: Callable[[], T], problems: list[str]) -> T | None:
    try:
        return read()
    except BadInput as error:
        problems.append(str(error))
        return None


def _fitting(roles: Roles, problems: list[str], notes: list[str]) -> Fitting | None:
    """The model's tokenizer with its limits; without one lengths are not told."""
    try:
        return roles.fitting
    except BadInput as error:
        problems.append(str(error))
    except StageFailed as error:
        notes.append(f"lengths in tokens are not known, and nothing was shortened: {error}")
    return None


def _described(
    found: Found[T] | None, fitting: Fitting | None, lengths: Callable[[list[T], Fitting], list[int]]
) -> dict[str, Any] | None:
    """What was found for a role; None where it could not be read."""
    if found is None:
        return None
    account = found.account
    described = found.origin | {"unit": found.rows.unit, "columns": list(account.columns), "format": account.format}
    described["count"] = len(found.items)
    if fitting is not None and found.items:
        counted = sorted(lengths(found.items, fitting))
        described["tokens"] = {"min": counted[0], "median": median_low(counted), "max": counted[-1]}
        described["tokens"]["sum"] = sum(counted)
    return described


def _text_lengths(texts: list[str], fitting: Fitting) -> list[int]:
    return list(map(len, fitting.tokenizer(texts)["input_ids"]))


def _pair_lengths(found: list[Example], fitting: Fitting) -> list[int]:
    """Of question and response, before a long question is cut."""
    written = [fitting.written(example) for example in found]
    splits = split_pairs(
        fitting.tokenizer, [example.question for example in written], [example.response for example in written]
    )
    return [len(split.ids) for split in splits]


def _overlap(instructions: list[Example], heldout: list[str]) -> dict[str, Any]:
    """Held-out texts that are also a question, a response or both of a pair: perplexity is then on training data."""
    trained: set[str] = set()
    for example in instructions:
        question, response = normal(example.question), normal(example.response)
        trained |= {question, response, f"{question} {response}"}
    shared = [text for text in heldout if normal(text) in trained]
    return {"texts": len(shared), "of": len(heldout), "first": shared[0][:60] if shared else None}


def _task_items(params: Params, alias: str, layout: Layout) -> dict[str, int]:
    """Items of the tasks in the model's own task files, as evaluate reads them; lm-eval's tasks would be downloads."""
    from restorelcc.stages.evaluate.tasks import EMBEDDED

    entry = params.models[alias]
    # The embedded model's own tasks are made by the stage `corpus`: they are no files yet.
    listed = [
        task
        for task, name in zip(entry.tasks_document, entry.task_names, strict=True)
        if not (entry.is_microworld and name == EMBEDDED)
    ]
    if not listed:
        return {}
    from restorelcc.stages.evaluate.local_data import datasets_under
    from restorelcc.stages.evaluate.tasks import load_tasks, own_tasks, selected_tasks

    local = datasets_under(layout.root, params.section(alias, "evaluate").datasets)
    with tempfile.TemporaryDirectory() as cache:
        write_document(Path(cache) / "tasks.json", {"embedded": []})
        asked = selected_tasks(Path(cache), listed, layout.root, cache)
        loaded = load_tasks(own_tasks(asked), local, cache, layout.root)
        if not loaded:
            return {}
        return {name: len(list(task.eval_docs)) for name, task in loaded["tasks"].items()}


def print_reading(found: dict[str, Any], console: Console | None = None) -> None:
    """One column per role, then facts about several roles, then the problems."""
    console = console or Console()
    columns = {role: _column(each) for role, each in found["roles"].items()}
    table = PlainTable(title=f"{found['model']} ({found['source']})")
    for title in ("", *columns):
        table.add_column(title, overflow="fold")
    for row in ("source", "format", "columns", "read", "used", "shortened", "skipped (first)", "tokens"):
        table.add_row(row, *(column.get(row, "-") for column in columns.values()))
    if columns:
        table.show(console)
        console.print()
    for line in _sentences(found):
        say(console, line)


def _column(each: dict[str, Any] | None) -> dict[str, str]:
    """What the data of a role hold, as text; nothing where the model has none."""
    if each is None:
        return {}
    rows, tokens = each["rows"], each.get("tokens")
    skipped = [f"{one['count']:,} {why} ({each['unit']} {one['first']})" for why, one in rows["skipped"].items()]
    shown = {"source": each["source"], "format": each["format"], "columns": ", ".join(each["columns"])}
    shown |= {name: f"{rows[name]:,}" for name in ("read", "used", "shortened")}
    shown["skipped (first)"] = "\n".join(skipped) or "-"
    return shown | (
        {"tokens": f"{tokens['min']:,} to {tokens['max']:,}, median {tokens['median']:,}"} if tokens else {}
    )


def _sentences(found: dict[str, Any]) -> Iterator[str]:
    if found["max_tokens"] is not None:
        yield f"Rows are fitted to {found['max_tokens']:,} tokens (corpus.max_tokens, and the model's context)."
    if "tokens" in (calibration := found.get("calibration") or {}):
        wanted = calibration["samples"] * calibration["sequence_length"]
        yield (
            f"Calibration: {calibration['sequences']:,} sequences, {calibration['tokens']:,} tokens, of the "
            f"{calibration['samples']:,} x {calibration['sequence_length']:,} = {wanted:,} that prune asks for at most."
        )
    if (overlap := found.get("overlap") or {}).get("texts"):
        yield (
            f"{overlap['texts']:,} of {overlap['of']:,} held-out texts are in the instructions too, the first is "
            f"{overlap['first']!r}: perplexity is then measured on training data."
        )
    for task, items in (found["tasks"] or {}).items():
        yield f"Task {task}: {items:,} items."
    yield from (f"note: {note}" for note in found["notes"])
    yield from (f"problem: {problem}" for problem in found["problems"])
