"""Tables of the report as text: the same for the page, Markdown and the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from restorelcc.base.recoveries import RECOVERIES, Recovery
from restorelcc.stages.report.results import Group, Row, rivals_of

_HEADS = Recovery("the heads that the probe ranks first")
Table = list[dict[str, str]]  # rows; every row has the same columns, title to text


def percent(value: float | None, decimals: int) -> str:
    """0.5 to "50.0"; None to a dash."""
    return "-" if value is None else f"{100 * value:z.{decimals}f}"


def interval_text(ci95: list[float | None] | None, decimals: int) -> str:
    """ "[12.0, 34.5]"; a dash without interval, "unbounded" where the loss is not clear of zero."""
    if ci95 is None:
        return "-"
    return "unbounded" if None in ci95 else f"[{', '.join(percent(bound, decimals) for bound in ci95)}]"


def number(value: float | None, decimals: int = 2) -> str:
    """Thousands parted by commas; a dash for None."""
    return "-" if value is None else f"{value:z,.{decimals}f}"


def p_text(p: float | None) -> str:
    """Two figures, "< 0.001" below that."""
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def size_text(size: float | None) -> str:
    """Bytes in the unit that leaves one to three figures before the point."""
    if size is None:
        return "-"
    for unit in ("B", "kB", "MB"):
        if round(size, 0 if unit == "B" else 1) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def summary(rows: list[Row], decimals: int) -> Table:
    """Every row for a reader; below an adapter, a row for each way of merging it."""
    table = []
    pruned = next((row["params_added"] for row in rows if row["kind"] == "pruned"), 0)  # where a variant says nothing
    for row in rows:
        table.append(_summary_columns(row, decimals))
        for variant, merged in (row.get("variants") or {}).items():
            share = merged.get("recovered") or {}
            own = {"what": f"{row['what']}, {variant}", "mean": merged["mean"], "sparsity": merged["sparsity"]}
            own |= {"recovered": share.get("mean"), "ci95": share.get("ci95"), "reason": share.get("reason")}
            own |= {"perplexity": merged["perplexity"]["value"], "generation": None}
            own |= {"params_added": merged.get("params_added", pruned)}
            table.append(_summary_columns(row | own, decimals))
        table += [_summary_columns(rival, decimals) for rival in rivals_of(row)]
    return table


def _summary_columns(row: Row, decimals: int) -> dict[str, str]:
    flagged = (row["generation"] or {}).get("degenerate")
    return {
        "": row["what"] + (" (degenerate)" if flagged else ""),
        "mean %": percent(row["mean"], decimals),
        "recovered %": row["reason"] or percent(row["recovered"], decimals),
        "95 % interval": interval_text(row["ci95"], decimals),
        "perplexity": number(row["perplexity"]),
        "params +": f"{row['params_added']:,}",
        "sparsity %": percent(row["sparsity"], 2),
    }


def task_columns(row: Row, decimals: int) -> dict[str, str]:
    """The row's value in every task, column title to text: accuracies in percent, other metrics as they are."""
    return {"acc %": row["what"]} | {
        (name if task["averaged"] else f"{name}, {task['metric']}"): task_value(task, decimals)
        for name, task in row["tasks"].items()
    }


def task_value(task: dict[str, Any], decimals: int) -> str:
    """An accuracy in percent; another metric in its own unit."""
    return percent(task["value"], decimals) if task["averaged"] else number(task["value"], max(2, decimals))


def task_facts(rows: list[Row]) -> Table:
    """Of every task the metric, whether it counts into the mean, lm-eval's version of it, shots and items; a row for
    each way that one was asked in, with its models, where these differ."""
    models: dict[tuple[str, ...], dict[str, None]] = {}
    for row in rows:
        for name, task in row["tasks"].items():
            of = (name, task["metric"], "yes" if task["averaged"] else "no", str(task.get("version", "-")))
            models.setdefault((*of, str(task["shots"]), f"{task['n']:,}"), {})[row["model"]] = None
    titles = ("task", "metric", "in the mean", "version", "shots", "items")
    names = list(dict.fromkeys(facts[0] for facts in models))
    differ = len(names) < len(models)
    return [
        dict(zip(titles, facts, strict=True)) | ({"model": ", ".join(models[facts])} if differ else {})
        for facts in sorted(models, key=lambda facts: names.index(facts[0]))
    ]


def not_averaged(rows: list[Row]) -> str | None:
    """Which tasks the mean leaves out, and why; None where it has them all."""
    tasks = {name: task["metric"] for row in rows for name, task in row["tasks"].items() if not task["averaged"]}
    if not tasks:
        return None
    named = ", ".join(f"{name} ({metric})" for name, metric in tasks.items())
    return f"Not in the mean, nor in what was recovered, because its metric is not an accuracy: {named}."


def tests_columns(row: Row, decimals: int) -> dict[str, str]:
    """The difference from the pruned model on the same items, with its interval and p before and after Holm."""
    return {
        "against pruned": row["what"],
        "difference, points": percent(row["difference"], decimals),
        "95 % interval": interval_text(row["difference_ci95"], decimals),
        "McNemar p": p_text(row["p"]),
        "p after Holm": p_text(row["p_holm"]),
    }


def perplexity_columns(row: Row) -> dict[str, str]:
    """Perplexity in its three ways, bits per byte, and the change of the documents' loss from the pruned model."""
    blocks, words, against = row["token_perplexity"] or {}, row["word_perplexity"] or {}, against_pruned(row)
    return {
        "perplexity": row["what"],
        "of documents, per token": number(row["perplexity"]),
        f"of blocks of {blocks.get('sequence_length', '-')}, per token": number(blocks.get("value")),
        "rolling, per word": number(words.get("value")),
        "bits per byte": number(row["bits_per_byte"], 3),
        "loss against pruned, nats a token": number(against.get("difference"), 4),
        "95 % interval": bounds_text(against.get("ci95")),
    }


def bounds_text(ci95: list[float] | None) -> str:
    """An interval in nats a token; a dash without one."""
    return "-" if ci95 is None else f"[{', '.join(number(bound, 4) for bound in ci95)}]"


def against_pruned(row: Row) -> dict[str, Any]:
    """Of the loss on the held-out texts; nothing of dense and pruned."""
    return (row["details"].get("heldout") or {}).get("pruned") or {}


def text_columns(row: Row) -> dict[str, str]:
    """What the generation check measured."""
    found = row["generation"] or {}
    written = row["details"].get("generation") or {}
    greedy, sampled = written.get("greedy") or {}, written.get("sampled") or {}
    ended = (row["details"].get("completions") or {}).get("greedy") or {}
    return {
        "text": row["what"],
        "flag": "-" if not found else "degenerate" if found["degenerate"] else "none",
        "KL to dense": number(found.get("kl_to_dense"), 3),
        "same top token %": percent(found.get("top_token_agreement"), 1),
        "same greedy text %": percent(found.get("greedy_agreement"), 1),
        "greedy repeats %": percent(greedy.get("repetition"), 1),
        "sampled repeats %": percent(sampled.get("repetition"), 1),
        "greedy ended %": percent(ended.get("finished"), 1),
        "greedy tokens": number(ended.get("length"), 1),
        "distinct-2 %": percent(greedy.get("distinct_2"), 1),
    }


def cost_columns(row: Row) -> dict[str, str]:
    """Parameters, size, memory and time."""
    latency = row["details"].get("latency") or {}
    seconds = latency.get("seconds")
    return {
        "cost": row["what"],
        "parameters": f"{row['params_total']:,}",
        "not zero": "-" if row["params_nonzero"] is None else f"{row['params_nonzero']:,}",
        "added": f"{row['params_added']:,}",
        "file": size_text(row["file_bytes"]),
        "without zeros": size_text(row["details"].get("packed_bytes")),
        "peak memory": size_text(row["details"].get("peak_memory_bytes")),
        "forward ms": "-" if seconds is None else f"{1000 * seconds:.2f}",
        "restored / pruned": number(latency.get("ratio"), 3),
        "evaluated in s": number(row["seconds"], 1),
    }


def layer_table(group: Group) -> Table:
    """Sparsity and reconstruction error of every layer."""
    layers: list[dict[str, Any]] = group.detail("layers") or []
    return [
        {
            "layer": str(layer["layer"]),
            "sparsity %": percent(layer["sparsity"], 2),
            "output error %": percent(layer["error"], 2),
        }
        for layer in layers
    ]


def verdict(rows: list[Row], decimals: int) -> str:
    """One honest sentence about the best restored row of a pruning; where none was asked for, of the other methods."""
    measured = [row for row in rows if row["recovered"] is not None]
    by_heads = [row for row in measured if row.get("kind", "restored") == "restored"]
    restored = by_heads or [row for row in measured if row.get("kind") == "recovered"]
    if not restored:
        return (
            "No share of the lost accuracy can be given: pruning lost nothing on these items, there are none, or they "
            "are not measured by an accuracy."
        )
    best = max(restored, key=_proven)
    share = f"{percent(best['recovered'], decimals)} % {_interval_in_words(best['ci95'], decimals)}"
    what, which = ("head ratio", f"{best['head_ratio']:g}") if by_heads else ("method", str(best["what"]))
    if won_back(best):
        count = compared(rows)
        caution = f" ({count} were measured on the same items, so the best is a little optimistic)" if count > 1 else ""
        return f"Best {what} {which}: {share} of the lost accuracy was recovered{caution}."
    if best["recovered"] <= 0:
        return f"No {what} restores any accuracy: the best, {which}, is at {share} of what was lost."
    return f"No {what} restores accuracy beyond doubt: the best, {which}, recovers {share} of what was lost."


def compared(rows: list[Row]) -> int:
    """How many recovered shares, of head ratios and other methods, the best one was chosen from."""
    return sum(row["recovered"] is not None for row in rows)


def won_back(row: Row) -> bool:
    """Whether a share of the lost accuracy was recovered beyond doubt: above zero with all of its interval."""
    low = (row["ci95"] or [None])[0]
    return row["recovered"] is not None and row["recovered"] > 0 and low is not None and low > 0


def _proven(row: Row) -> tuple[bool, float]:
    """A key by which the best comes last: what is beyond doubt is better than any share that is not."""
    return won_back(row), row["recovered"]


def nothing_won(rows: list[Row], decimals: int) -> list[str]:
    """A plain sentence for every row that recovered nothing, or nothing beyond doubt."""
    return [
        f"{row['what']}: nothing was recovered{' beyond doubt' if row['recovered'] > 0 else ''}: "
        f"{percent(row['recovered'], decimals)} % {_interval_in_words(row['ci95'], decimals)}."
        for row in rows
        if row["recovered"] is not None and not won_back(row) and not is_unchanged(row)
    ]


def _interval_in_words(ci95: list[float | None] | None, decimals: int) -> str:
    if ci95 is None:
        return "(without an interval: a task has a single item)"
    return "(its interval is unbounded)" if None in ci95 else interval_text(ci95, decimals)


def unchanged(rows: list[Row]) -> list[str]:
    """One sentence for every row whose training ended with no change to the pruned model."""
    return [
        f"{row['what']}: nothing was recovered: no candidate beat the pruned model on the validation pairs, so this "
        "is the pruned model."
        for row in rows
        if is_unchanged(row)
    ]


def is_unchanged(row: Row) -> bool:
    """Whether training ended with the pruned model as it was."""
    return bool(row.get("details", {}).get("no_change"))


# A constraint a user may have, and the methods that respect it.
_BUDGETS: dict[str, Callable[[Recovery], bool]] = {
    "only biases may change": lambda method: method.ships == "biases",
    "weights may change, zeros stay": lambda method: method.ships != "adapter",
    "only an adapter may be added": lambda method: method.ships == "adapter",
    "no responses to learn from": lambda method: not method.labels,
}


def picks(rows: list[Row], decimals: int) -> Table:
    """What to pick, as the numbers show it: for every constraint the measured method that recovers most under it; one
    that recovers something beyond doubt comes before any that does not.

    Empty where no other method was measured: there is nothing to choose from but head ratios.
    """
    known = [row for row in rows if row["kind"] in ("restored", "recovered") and row["recovered"] is not None]
    if not any(row["kind"] == "recovered" for row in known):
        return []
    table = []
    for budget, respected in _BUDGETS.items():
        fitting = [row for row in known if respected(RECOVERIES.get(row["recovery"], _HEADS))]
        if fitting:
            best = max(fitting, key=_proven)
            table.append(
                {
                    "where": budget,
                    "pick": best["what"],
                    "recovered %": percent(best["recovered"], decimals),
                    "95 % interval": interval_text(best["ci95"], decimals),
                    "of": f"{len(fitting)} measured",
                    "trained": "-" if best["params_trained"] is None else f"{best['params_trained']:,}",
                    "params +": f"{best['params_added']:,}",
                    "seconds, when last run here": number(best["recovery_seconds"], 1),
                }
            )
    return table


def comparison_note(rows: list[Row]) -> str | None:
    """How p was adjusted, where there is more than one comparison to adjust for."""
    count = sum(row["p_holm"] is not None for row in rows)
    if count < 2:
        return None
    return (
        f"{count} models are compared with their pruned model. p after Holm is adjusted for that many comparisons: "
        "with no real difference anywhere, a value below 0.05 would appear in 5 % of such grids."
    )
