"""`restorelcc compare`: two results, item by item."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from restorelcc.base.cell import Cell, evaluated_again
from restorelcc.base.errors import BadInput

if TYPE_CHECKING:
    from restorelcc.base.fingerprint import Fingerprint


FIRST = Annotated[Path, typer.Argument(metavar="A.json", help="metrics that an evaluate stage wrote")]
SECOND = Annotated[Path, typer.Argument(metavar="B.json", help="metrics of the model to compare with it")]
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


def add(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("compare", help="Two results: B - A per task and pooled, with paired interval and McNemar's test.")(
        compare
    )


def compare(
    first: FIRST,
    second: SECOND,
    seeds_of_a: Annotated[
        list[Path] | None, typer.Option("--also-a", help="A trained with another seed; repeatable")
    ] = None,
    seeds_of_b: Annotated[
        list[Path] | None, typer.Option("--also-b", help="B trained with another seed; repeatable")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=100, help="bootstrap draws")] = 10_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of the bootstrap")] = 42,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout")] = False,
) -> None:
    """Compare two results on the same items, and print the comparison."""
    found = comparison([first, *(seeds_of_a or [])], [second, *(seeds_of_b or [])], samples=samples, seed=seed)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        print_comparison(found)


def comparison(first: list[Path], second: list[Path], *, samples: int, seed: int) -> dict[str, Any]:
    """Both results, and B - A on their common items; several files of a side are training seeds of one model.

    Raises BadInput for a file of another schema, without samples next to it, or measured in another way.
    """
    from restorelcc.base.fingerprint import check_comparable
    from restorelcc.stages.evaluate import statistics

    sides = [[_read(path) for path in side] for side in (first, second)]
    base, *others = [*sides[0], *sides[1]]
    for other in others:
        again = evaluated_again(base.cell, other.cell)
        check_comparable(str(base.path), base.fingerprint, str(other.path), other.fingerprint, again)
        statistics.check_same_items(str(other.path), other.rows, str(base.path), base.rows)
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
    texts = [[each.texts for each in side if each.texts is not None] for side in sides]
    found["heldout"] = None
    if [len(side) for side in texts] == [len(side) for side in sides]:
        found["heldout"] = statistics.compare_texts(texts[0], texts[1], samples=samples, seed=seed)
    return {"a": shown[0], "b": shown[1], **found, "method": "paired bootstrap, McNemar mid-p", "samples": samples}


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
    from restorelcc.stages.evaluate.statistics import compare_ratios, sums_of

    task = sides[0][0].metrics["tasks"][name]
    kept = {"metric": task["metric"], "higher_is_better": task["higher_is_better"]}
    sums = [[sums_of(each.rows, name) for each in side] for side in sides]
    first, second = ([each for each in side if each is not None] for side in sums)
    if [len(first), len(second)] == [len(side) for side in sides]:
        return compare_ratios(first, second, task["aggregation"], samples=samples, seed=seed) | kept
    values = [[each.metrics["tasks"][name]["value"] for each in side] for side in sides]
    one, two = (None if None in side else sum(side) / len(side) for side in values)
    apart = None if one is None or two is None else two - one
    found = {"first": one, "second": two, "difference": apart, "ci95": None, "n": task["n"]}
    return found | {"won": None, "lost": None, "p": None} | kept


def _read(path: Path) -> Result:
    from restorelcc.base.documents import cell_of, read_metrics
    from restorelcc.base.fingerprint import read_fingerprint
    from restorelcc.base.tables import TEXT_SCORES, read_table

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
    from restorelcc.base.tables import SAMPLES, read_table

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


def print_comparison(found: dict[str, Any]) -> None:
    """A table with a row per task and a pooled one, and one sentence."""
    from rich.console import Console

    from restorelcc.base.escaping import PlainTable, say
    from restorelcc.stages.report.tables import interval_text, number, p_text, percent

    console, a, b = Console(), found["a"], found["b"]
    for letter, side in (("A", a), ("B", b)):
        seeds = f", {side['seeds']} seeds" if side["seeds"] > 1 else ""
        say(
            console,
            f"{letter}  {side['name']}{seeds}: mean {percent(side['mean'], 1)} %, "
            f"perplexity {number(side['perplexity'])}, sparsity {percent(side['sparsity'], 2)} %",
        )
    table = PlainTable()
    for position, title in enumerate(("", "A %", "B %", "B - A", "95 % interval", "B only", "A only", "p")):
        table.add_column(title, justify="right" if position else "left")
    rows = [*found["tasks"].items(), *([("pooled", found["pooled"])] if found["pooled"] else [])]
    for name, task in rows:
        won, lost = ("-" if task[key] is None else str(task[key]) for key in ("won", "lost"))
        if task.get("averaged", True):
            values = [percent(task[key], 1) for key in ("first", "second", "difference")]
            shown = interval_text(task["ci95"], 1)
        else:
            name, values = f"{name}, {task['metric']}", [number(task[key]) for key in ("first", "second", "difference")]
            shown = "-" if task["ci95"] is None else f"[{', '.join(number(bound) for bound in task['ci95'])}]"
        table.add_row(name, *values, shown, won, lost, p_text(task["p"]))
    if rows:
        table.show(console, ("A only", "B only", "p"))
        console.print()
        say(console, sentence(found))
    if (texts := found["heldout"]) is not None and texts["difference"] is not None:
        say(console, texts_sentence(texts))


def texts_sentence(texts: dict[str, Any]) -> str:
    """What the interval of the loss on the held-out texts says."""
    count = "1 text" if texts["n"] == 1 else f"{texts['n']:,} texts"
    told = f"loss {texts['first']:.4f} -> {texts['second']:.4f} nats a token"
    if texts["ci95"] is None:
        return f"Held-out texts: {told} on {count}, which has no interval."
    low, high = texts["ci95"]
    told += f", B - A = {texts['difference']:.4f} [{low:.4f}, {high:.4f}] on {count}"
    if low > 0 or high < 0:
        return f"B predicts the held-out texts {'worse' if low > 0 else 'better'} than A, beyond chance: {told}."
    return f"No difference beyond chance on the held-out texts: {told}."


def sentence(found: dict[str, Any]) -> str:
    """What the pooled interval says, and which tasks it is not about."""
    pooled = found["pooled"]
    others = [f"{name} ({task['metric']})" for name, task in found["tasks"].items() if not task.get("averaged", True)]
    apart = f" Not in the mean, because its metric is not an accuracy: {', '.join(others)}." if others else ""
    if pooled is None:
        return f"No mean accuracy can be compared.{apart}"
    low, high = pooled["ci95"]
    size, items = f"{100 * abs(pooled['difference']):.1f} points", f"{pooled['n']:,} items"
    if low > 0 or high < 0:
        return f"B is {size} {'better' if low > 0 else 'worse'} than A on {items}, beyond chance (95 %).{apart}"
    return f"No difference beyond chance: B - A is {100 * pooled['difference']:.1f} points on {items}.{apart}"
