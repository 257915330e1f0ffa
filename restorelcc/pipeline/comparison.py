"""Two results, item by item: B - A on their common items, and the share of the loss that each recovered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restorelcc.base.cell import Cell, evaluated_again
from restorelcc.base.documents import cell_of, read_metrics
from restorelcc.base.errors import BadInput
from restorelcc.base.fingerprint import Fingerprint, check_comparable, read_fingerprint
from restorelcc.base.layout import Layout
from restorelcc.base.tables import SAMPLES, TEXT_SCORES, read_table
from restorelcc.stages.evaluate import statistics

_SAME = ("bits_per_byte", "sparsity", "params_added")


@dataclass(frozen=True)
class Result:
    """One evaluation: its metrics, how it was measured, its items, and the scores of its held-out texts."""

    path: Path
    cell: Cell
    metrics: dict[str, Any]
    fingerprint: Fingerprint
    rows: list[dict[str, Any]]
    texts: list[dict[str, Any]] | None  # None: it was made by a version that kept no scores of texts


def comparison(
    first: list[Path],
    second: list[Path],
    *,
    samples: int,
    seed: int,
    dense: Path | None = None,
    pruned: Path | None = None,
) -> dict[str, Any]:
    """Both results, and B - A on their common items; several files of a side are training seeds of one model.

    `recovered` of a side that was restored or recovered: its share of the loss, against the dense and the pruned model,
    found where a project has them unless given; None where there are none. Raises BadInput for a file of another
    schema, without samples next to it, or measured in another way.
    """
    sides = [[_read(path) for path in side] for side in (first, second)]
    base, *others = [*sides[0], *sides[1]]
    for other in others:
        _check_alike(base, other)
    for side in sides:
        _check_seeds(side)
    shown = [_side(side) for side in sides]
    counted = [name for name, task in base.metrics["tasks"].items() if task["averaged"]]
    scores = [[statistics.scores_by_task(each.rows, counted) for each in side] for side in sides]
    found: dict[str, Any] = {"tasks": {}, "pooled": None}
    if counted:
        found = statistics.compare_runs(scores[0], scores[1], samples=samples, seed=seed)
    for name, task in base.metrics["tasks"].items():
        if task["averaged"]:
            found["tasks"][name] |= {"metric": task["metric"], "averaged": True}
        else:
            found["tasks"][name] = _other_metric(name, sides, samples, seed) | {"averaged": False}
    for side, told in zip(sides, shown, strict=True):
        told["recovered"] = _recovered(side, [base, *others], counted, (dense, pruned), samples=samples, seed=seed)
    for option, path in (("--dense", dense), ("--pruned", pruned)):
        if path is not None and shown[0]["recovered"] is shown[1]["recovered"] is None:
            raise BadInput(f"{option} {path}: neither A nor B was recovered from it, leave the option out")
    texts = [[each.texts for each in side if each.texts is not None] for side in sides]
    found["heldout"] = None
    if [len(side) for side in texts] == [len(side) for side in sides]:
        found["heldout"] = statistics.compare_texts(texts[0], texts[1], samples=samples, seed=seed)
    return {"a": shown[0], "b": shown[1], **found, "method": "paired bootstrap, McNemar mid-p", "samples": samples}


def _check_alike(base: Result, other: Result) -> None:
    """Raises BadInput unless both were measured in the same way and on the same items."""
    again = evaluated_again(base.cell, other.cell)
    check_comparable(str(base.path), base.fingerprint, str(other.path), other.fingerprint, again)
    statistics.check_same_items(str(other.path), other.rows, str(base.path), base.rows)


def _recovered(
    side: list[Result],
    given: list[Result],
    counted: list[str],
    named: tuple[Path | None, Path | None],
    *,
    samples: int,
    seed: int,
) -> dict[str, Any] | None:
    """The share of the lost mean accuracy that the runs of a side recovered. None of a dense or pruned model, without
    accuracies, and where a model to compare with is not there, or is another's that was named."""
    cell = side[0].cell
    if cell.kind in ("dense", "pruned") or not counted:
        return None
    scores = []
    for wanted, name in zip((Cell(cell.model), Cell(cell.model, cell.pruning)), named, strict=True):
        path = name or _found(wanted, side, given)
        if path is None:
            return None
        try:
            other = _read(path)
            _check_alike(side[0], other)
        except BadInput as error:
            if name is not None:
                raise
            return {"mean": None, "ci95": None, "reason": str(error)}  # nobody asked for it
        if other.cell != wanted:
            return None
        scores.append(statistics.scores_by_task(other.rows, counted))
    runs = [statistics.scores_by_task(each.rows, counted) for each in side]
    return statistics.recovered_share(scores[0], scores[1], runs, samples=samples, seed=seed)


def _found(wanted: Cell, side: list[Result], given: list[Result]) -> Path | None:
    """The metrics of a cell: in the project that a file of the side lies in, or else among those that are given."""
    for each in side:
        path = each.path.absolute()
        for layout in map(Layout, path.parents):
            if layout.metrics(each.cell) == path and layout.metrics(wanted).is_file():
                return layout.metrics(wanted)
    return next((each.path for each in given if each.cell == wanted), None)


def _check_seeds(side: list[Result]) -> None:
    """Raises BadInput for a file that is there twice, and for one of something else than training seeds differ in."""
    paths = [each.path.resolve() for each in side]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise BadInput(f"{twice} is given twice as one side: a training seed counts once")
    for each in side[1:]:
        first, other = ((cell.pruning, cell.head_ratio, cell.recovery) for cell in (side[0].cell, each.cell))
        if first != other:
            raise BadInput(
                f"{each.path} is of {each.cell} ({each.cell.kind}) and {side[0].path} of {side[0].cell} "
                f"({side[0].cell.kind}): one side is one pruning and one way to recover, with several training seeds"
            )


def _side(side: list[Result]) -> dict[str, Any]:
    shown = {"file": str(side[0].path), "name": _name(side[0].metrics), "seeds": len(side)}
    shown |= {name: _mean([each.metrics.get(name) for each in side]) for name in ("mean", *_SAME)}
    return shown | {"perplexity": _mean([each.metrics["perplexity"]["value"] for each in side])}


def _mean(values: list[Any]) -> Any:
    """Of all seeds; None where one has no number. Equal numbers stay as they are."""
    if None in values or len(set(values)) == 1:
        return None if None in values else values[0]
    return sum(values) / len(values)


def _other_metric(name: str, sides: list[list[Result]], samples: int, seed: int) -> dict[str, Any]:
    """B - A of a task that is not measured by an accuracy; without an interval where its items have no score."""
    task = sides[0][0].metrics["tasks"][name]
    kept = {"metric": task["metric"], "higher_is_better": task["higher_is_better"]}
    sums = [[statistics.sums_of(each.rows, name) for each in side] for side in sides]
    first, second = ([each for each in side if each is not None] for side in sums)
    if [len(first), len(second)] == [len(side) for side in sides]:
        return statistics.compare_ratios(first, second, task["aggregation"], samples=samples, seed=seed) | kept
    values = [[each.metrics["tasks"][name]["value"] for each in side] for side in sides]
    one, two = (None if None in side else sum(side) / len(side) for side in values)
    apart = None if one is None or two is None else two - one
    found = {"first": one, "second": two, "difference": apart, "ci95": None, "n": task["n"]}
    return found | {"won": None, "lost": None, "p": None} | kept


def _read(path: Path) -> Result:
    metrics, rows = read_metrics(path), _samples(path)
    cell, scored = cell_of(metrics, path), path.with_suffix(".texts.parquet")
    how = read_fingerprint(path.with_suffix(".parquet"), cell, metrics["measured"])
    texts = None
    if scored.is_file():
        read_fingerprint(scored, cell, metrics["measured"])  # refuses those of another run
        texts = read_table(scored, TEXT_SCORES)
    if not rows and not texts:
        raise BadInput(f"{path} was measured without tasks and without texts, so there is nothing to pair")
    return Result(path, cell, metrics, how, rows, texts)


def _samples(path: Path) -> list[dict[str, Any]]:
    beside = path.with_suffix(".parquet")
    if not beside.is_file():
        raise BadInput(
            f"{beside} is missing: a paired comparison needs the results per item, which are next to the metrics "
            "(dvc checkout or dvc pull brings them back)"
        )
    return read_table(beside, SAMPLES)


def _name(metrics: dict[str, Any]) -> str:
    ratio = metrics["head_ratio"]
    last = metrics.get("recovery") or ("pruned" if ratio is None else f"heads {ratio:g}")
    return metrics["model"] + (" dense" if metrics["pruning"] is None else f" {metrics['pruning']} {last}")
