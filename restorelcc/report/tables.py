"""Rows of the result table, from the metrics of every cell."""

from __future__ import annotations

from typing import Any


def result_rows(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per metrics document: names, mean accuracy, recovered share with interval, perplexity, parameters."""
    return [_row(metrics) for metrics in cells]


def _row(metrics: dict[str, Any]) -> dict[str, Any]:
    if metrics["pruning"] is None:
        label = "dense"
    elif metrics.get("baseline") is not None:
        label = metrics["baseline"]
    elif metrics["head_ratio"] is None:
        label = "pruned"
    else:
        label = f"heads {metrics['head_ratio']:g}"
    recovered = metrics.get("recovered") or {}
    return {
        "model": metrics["model"],
        "pruning": metrics["pruning"],
        "head_ratio": metrics["head_ratio"],
        "baseline": metrics.get("baseline"),
        "what": label,
        "mean": metrics["mean"],
        "tasks": {name: task["value"] for name, task in metrics["tasks"].items()},
        "items": sum(task["n"] for task in metrics["tasks"].values()),
        "recovered": recovered.get("mean"),
        "ci95": recovered.get("ci95"),
        "reason": recovered.get("reason"),
        "perplexity": metrics["perplexity"]["value"],
        "params_added": metrics["params_added"],
        "sparsity": metrics["sparsity"],
    }


def percent(value: float | None, decimals: int) -> str:
    """0.5 to "50.0"; None to a dash."""
    return "-" if value is None else f"{100 * value:.{decimals}f}"


def interval_text(ci95: list[float | None] | None, decimals: int) -> str:
    """ "[12.0, 34.5]"; a dash without interval, "unbounded" where the loss is not clear of zero."""
    if ci95 is None:
        return "-"
    return "unbounded" if None in ci95 else f"[{', '.join(percent(bound, decimals) for bound in ci95)}]"


def summary_columns(row: dict[str, Any], decimals: int) -> dict[str, str]:
    """The row's summary as a person reads it, column title to text."""
    return {
        "": row["what"],
        "mean %": percent(row["mean"], decimals),
        "recovered %": row["reason"] or percent(row["recovered"], decimals),
        "95 % interval": interval_text(row["ci95"], decimals),
        "perplexity": f"{row['perplexity']:.2f}",
        "params +": f"{row['params_added']:,}",
        "sparsity %": percent(row["sparsity"], 2),
    }


def task_columns(row: dict[str, Any], decimals: int) -> dict[str, str]:
    """The row's accuracy in every task, column title to text."""
    return {"acc %": row["what"]} | {name: percent(value, decimals) for name, value in row["tasks"].items()}


def verdict(rows: list[dict[str, Any]], decimals: int) -> str:
    """One honest sentence about the best restored row of a pruning."""
    restored = [row for row in rows if row["recovered"] is not None and row.get("baseline") is None]
    if not restored:
        return "No share of the lost accuracy can be given: pruning lost nothing on these items, or there are none."
    best = max(restored, key=lambda row: row["recovered"])
    share = f"{percent(best['recovered'], decimals)} % {interval_text(best['ci95'], decimals)}"
    if best["ci95"][0] is not None and best["ci95"][0] > 0:
        caution = (
            "" if len(restored) == 1 else f" (best of {len(restored)} ratios on the same items: a little optimistic)"
        )
        return f"Best head ratio {best['head_ratio']:g}: {share} of the lost accuracy is back{caution}."
    return (
        f"No head ratio restores accuracy beyond doubt: the best, {best['head_ratio']:g}, "
        f"gives back {share} of what was lost."
    )
