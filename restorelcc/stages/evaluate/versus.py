"""A model against the dense and the pruned one, on the same items, measured in the same way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from restorelcc.base.cell import Cell, evaluated_again
from restorelcc.base.fingerprint import Fingerprint, check_comparable, difference, read_fingerprint
from restorelcc.base.layout import Layout
from restorelcc.base.tables import SAMPLES, TEXT_SCORES, read_table
from restorelcc.stages.evaluate.harness import accuracies
from restorelcc.stages.evaluate.statistics import (
    check_same_items,
    compare,
    compare_ratios,
    compare_texts,
    recovered_share,
    scores_by_task,
    sums_of,
)

Rows = list[dict[str, Any]]
_NAMES = ("dense", "pruned")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was measured of a model: its items, its held-out texts, its tasks as the metrics have them, and how."""

    cell: Cell
    rows: Rows
    texts: Rows
    tasks: dict[str, dict[str, Any]]
    fingerprint: Fingerprint

    @property
    def averaged(self) -> list[str]:
        """Tasks that count into the mean."""
        return [name for name, task in self.tasks.items() if task["averaged"]]


def averaged_tasks(results: dict[str, Any], cell: Cell, layout: Layout) -> dict[str, bool]:
    """Whether each task counts into the mean: as it did for the dense model, so that it is one mean for all of them."""
    own, dense = accuracies(results), Cell(cell.model)
    if cell == dense or not layout.samples(dense).is_file():
        return own
    tasks = read_fingerprint(layout.samples(dense), dense).tasks
    return {task: tasks[task].averaged if task in tasks else counts for task, counts in own.items()}


def versus(
    outcome: Outcome, others: list[Cell], layout: Layout, *, samples: int, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metrics, details): the recovered share; tests against the dense (and pruned) cell, pooled and per task, and
    the difference of the loss on the held-out texts.

    Raises BadInput, naming what differs and the evaluations that are old, for others that were measured in another way.
    """
    check_alike(outcome.cell, outcome.fingerprint, others, layout)
    heldout = {
        name: compare_texts(
            [read_table(layout.text_scores(cell), TEXT_SCORES)], [outcome.texts], samples=samples, seed=seed
        )
        for name, cell in zip(_NAMES, others, strict=False)
    }
    if not outcome.rows:
        return {}, {"heldout": heldout}
    theirs = [read_table(layout.samples(cell), SAMPLES) for cell in others]
    for cell, rows in zip(others, theirs, strict=True):
        check_same_items(str(outcome.cell), outcome.rows, f"{cell} ({cell.kind})", rows)
    counted = outcome.averaged
    ours, scores = scores_by_task(outcome.rows, counted), [scores_by_task(rows, counted) for rows in theirs]
    metrics: dict[str, Any] = {}
    pooled: dict[str, Any] = {}
    details: dict[str, dict[str, Any]] = {name: {} for name, _ in zip(_NAMES, others, strict=False)}
    if counted:
        pairs = zip(_NAMES, scores, strict=False)
        found = {name: compare(other, ours, samples=samples, seed=seed) for name, other in pairs}
        pooled = {name: comparison["pooled"] for name, comparison in found.items()}
        details = {name: comparison["tasks"] for name, comparison in found.items()}
    if len(others) == 2:
        metrics["recovered"] = (
            recovered_share(scores[0], scores[1], ours, samples=samples, seed=seed)
            if counted
            else {"mean": None, "ci95": None, "reason": "no task is measured by an accuracy"}
        )
    for name, rows in zip(_NAMES, theirs, strict=False):
        details[name] |= _other_metrics(outcome, rows, samples, seed)
    return metrics, {"pooled": pooled, "versus": details, "heldout": heldout}


def check_alike(cell: Cell, fingerprint: Fingerprint, others: list[Cell], layout: Layout) -> None:
    """Raises BadInput, naming what differs and the evaluations that are old, for others that were measured in another
    way. Of a fingerprint without tasks, as it is before the run, everything else is compared."""
    found = {other: read_fingerprint(layout.samples(other), other) for other in others}
    if not fingerprint.tasks:
        found = {other: replace(theirs, tasks={}) for other, theirs in found.items()}
    differing = [other for other in others if difference(found[other], fingerprint)]
    for other in differing:
        name, again = f"{other} ({other.kind})", evaluated_again(*differing)
        check_comparable(name, found[other], f"{cell} ({cell.kind})", fingerprint, again)


def _other_metrics(outcome: Outcome, theirs: Rows, samples: int, seed: int) -> dict[str, Any]:
    """The tasks that are not measured by an accuracy, where their items have a score."""
    found = {}
    for name, task in outcome.tasks.items():
        first, second = sums_of(theirs, name), sums_of(outcome.rows, name)
        if not task["averaged"] and first is not None and second is not None:
            found[name] = compare_ratios([first], [second], task["aggregation"], samples=samples, seed=seed)
    return found
