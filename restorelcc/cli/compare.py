"""`restorelcc compare`: two results, item by item."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

_NO_INTERVAL = "a task has a single item, so there is no interval"
FIRST = Annotated[Path, typer.Argument(metavar="A.json", help="metrics that an evaluate stage wrote")]
SECOND = Annotated[Path, typer.Argument(metavar="B.json", help="metrics of the model to compare with it")]


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
    dense: Annotated[
        Path | None,
        typer.Option("--dense", help="metrics of the dense model, for recovered shares  [the project's]"),
    ] = None,
    pruned: Annotated[
        Path | None, typer.Option("--pruned", help="metrics of the pruned model, likewise  [the project's]")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=100, help="bootstrap draws")] = 10_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of the bootstrap")] = 42,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout")] = False,
) -> None:
    """Compare two results on the same items, and print the comparison."""
    from restorelcc.pipeline.comparison import comparison

    sides = [first, *(seeds_of_a or [])], [second, *(seeds_of_b or [])]
    found = comparison(*sides, samples=samples, seed=seed, dense=dense, pruned=pruned)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        print_comparison(found)


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
        table.show(console, ("A only", "B only", "p"), "--json")
        console.print()
        say(console, sentence(found))
    for letter, side in (("A", a), ("B", b)):
        if side["recovered"] is not None:
            say(console, recovered_sentence(letter, side["recovered"]))
    if (texts := found["heldout"]) is not None and texts["difference"] is not None:
        say(console, texts_sentence(texts))


def recovered_sentence(letter: str, share: dict[str, Any]) -> str:
    """The recovered share of a side with its interval, or why there is none."""
    from restorelcc.stages.report.tables import interval_text, percent

    if share["mean"] is None:
        return f"The share of the loss that {letter} recovered is not known: {share['reason']}."
    told = f"{letter} recovered {percent(share['mean'], 1)} % of the mean accuracy that pruning lost"
    if share["ci95"] is None:
        return f"{told}; {_NO_INTERVAL}."
    seeds = f" and {share['seeds']} seeds" if share["seeds"] > 1 else ""
    return f"{told}, 95 % interval over items{seeds} {interval_text(share['ci95'], 1)}."


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
    size, items = f"{100 * abs(pooled['difference']):.1f} points", f"{pooled['n']:,} items"
    if pooled["ci95"] is None:
        items = "1 item" if pooled["n"] == 1 else items
        return f"B - A is {100 * pooled['difference']:.1f} points on {items}; {_NO_INTERVAL}.{apart}"
    low, high = pooled["ci95"]
    if low > 0 or high < 0:
        return f"B is {size} {'better' if low > 0 else 'worse'} than A on {items}, beyond chance (95 %).{apart}"
    return f"No difference beyond chance: B - A is {100 * pooled['difference']:.1f} points on {items}.{apart}"
