"""`restorelcc compare`: two results, item by item."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from restorelcc.core.errors import BadInput
from restorelcc.io.metrics import read_metrics
from restorelcc.io.sample_table import SAMPLES
from restorelcc.io.tables import read_table

FIRST = Annotated[Path, typer.Argument(metavar="A.json", help="metrics that an evaluate stage wrote")]
SECOND = Annotated[Path, typer.Argument(metavar="B.json", help="metrics of the model to compare with it")]
_SAME = ("perplexity", "bits_per_byte", "sparsity", "params_added")


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

    Raises BadInput for a file of another schema, without samples beside it, or measured on other items.
    """
    from restorelcc.evaluate import statistics

    sides = [[(path, read_metrics(path), _samples(path)) for path in side] for side in (first, second)]
    (path, _, reference), *others = [*sides[0], *sides[1]]
    for other, _, rows in others:
        statistics.check_same_items(str(other), rows, str(path), reference)
    shown: list[dict[str, Any]] = [
        {"file": str(side[0][0]), "name": _name(side[0][1]), "seeds": len(side)}
        | {"mean": side[0][1]["mean"] if len(side) == 1 else sum(m["mean"] for _, m, _ in side) / len(side)}
        | {name: side[0][1].get(name) for name in _SAME}
        for side in sides
    ]
    for side in shown:
        side["perplexity"] = side["perplexity"]["value"]
    scores = [[statistics.scores_by_task(rows) for _, _, rows in side] for side in sides]
    found = statistics.compare_runs(scores[0], scores[1], samples=samples, seed=seed)
    return {"a": shown[0], "b": shown[1], **found, "method": "paired bootstrap, McNemar mid-p", "samples": samples}


def _samples(path: Path) -> list[dict[str, Any]]:
    beside = path.with_suffix(".parquet")
    if not beside.is_file():
        raise BadInput(
            f"{beside} is missing: a paired comparison needs the results per item, which lie beside the metrics "
            "(dvc checkout or dvc pull brings them back)"
        )
    rows = read_table(beside, SAMPLES)
    if not rows:
        raise BadInput(f"{beside} holds no item: the model was evaluated without tasks, so there is nothing to pair")
    return rows


def _name(metrics: dict[str, Any]) -> str:
    ratio = metrics["head_ratio"]
    last = metrics.get("baseline") or ("pruned" if ratio is None else f"heads {ratio:g}")
    return metrics["model"] + (" dense" if metrics["pruning"] is None else f" {metrics['pruning']} {last}")


def print_comparison(found: dict[str, Any]) -> None:
    """A table with a row per task and a pooled one, and one sentence."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from restorelcc.report.tables import interval_text, p_text, percent

    console, a, b = Console(), found["a"], found["b"]
    for letter, side in (("A", a), ("B", b)):
        seeds = f", {side['seeds']} seeds" if side["seeds"] > 1 else ""
        console.print(
            f"{letter}  {side['name']}{seeds}: mean {percent(side['mean'], 1)} %, perplexity {side['perplexity']:.2f}, "
            f"sparsity {percent(side['sparsity'], 2)} %",
            highlight=False,
            soft_wrap=True,
        )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, title in enumerate(("", "A %", "B %", "B - A", "95 % interval", "B only", "A only", "p")):
        table.add_column(title, justify="right" if number else "left")
    for name, task in [*found["tasks"].items(), ("pooled", found["pooled"])]:
        won, lost = ("-" if task[key] is None else str(task[key]) for key in ("won", "lost"))
        values = [percent(task["first"], 1), percent(task["second"], 1), percent(task["difference"], 1)]
        table.add_row(name, *values, interval_text(task["ci95"], 1), won, lost, p_text(task["p"]))
    console.print(table)
    console.print(sentence(found), highlight=False, soft_wrap=True)


def sentence(found: dict[str, Any]) -> str:
    """What the pooled interval says."""
    pooled = found["pooled"]
    low, high = pooled["ci95"]
    size = f"{100 * abs(pooled['difference']):.1f} points"
    if low > 0 or high < 0:
        return f"B is {size} {'better' if low > 0 else 'worse'} than A on {pooled['n']:,} items, beyond chance (95 %)."
    return f"No difference beyond chance: B - A is {100 * pooled['difference']:.1f} points on {pooled['n']:,} items."
