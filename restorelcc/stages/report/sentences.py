"""Sentences about a group of rows: how its model was pruned, what its bytes would buy otherwise, and what got worse."""

from __future__ import annotations

from typing import Any

from restorelcc.base.recoveries import RECOVERIES
from restorelcc.stages.report.results import Group, Row, rivals_of
from restorelcc.stages.report.tables import against_pruned, bounds_text, number, percent, size_text


def how_pruned(group: Group) -> list[str]:
    """A sentence on what `refined` did, and one on shares that differ by block; empty where neither holds."""
    return _how_refined(group.detail("refined")) + _how_allocated(group.detail("allocation"), group.detail("layers"))


def _how_allocated(allocation: dict[str, Any] | None, layers: list[dict[str, Any]] | None) -> list[str]:
    if not allocation or not layers:
        return []
    shares = [layer["sparsity"] for layer in layers]
    how = {
        "arithmetic": "by equal steps from the first to the last",
        "owl": "by their share of outliers (OWL): the more a block has, the less it loses",
    }
    return [f"Each block lost its own share, {min(shares):.1%} to {max(shares):.1%}, {how[allocation['by']]}."]


def _how_refined(refined: dict[str, Any] | None) -> list[str]:
    """What was done, without the parts that were left out."""
    if not refined:
        return []
    linears, changed = (refined.get(key, 1) for key in ("linears", "biases_changed"))
    bias = refined["bias"] and changed > 0
    steps = [f"the mask starts from {'Wanda' if refined['start'] == 'wanda' else 'SparseGPT'}"]
    if refined["swaps"]:
        steps.append("is improved by exchanging kept weights with removed ones while that lowers a layer's error")
    if refined["update"]:
        steps.append("the surviving weights are fitted to it by least squares")
    on = "" if changed >= linears else f" on {changed} of {linears} linears"
    if bias:
        steps.append(f"biases{on} take up the constant part of what is lost{' there' if on else ''}")
    about = (
        f", {'those linears' if on else 'all of it'} by statistics about the mean"
        if bias and refined["centred"]
        else ""
    )
    if refined["bias"] and not bias:
        about = "; no bias was changed"
    return [f"How it was pruned: {', '.join(steps[:-1])}{' and ' if len(steps) > 1 else ''}{steps[-1]}{about}."]


def same_bytes(rows: list[Row], decimals: int) -> list[str]:
    """What the pruned model takes without its zeros, beside the dense model rounded to few bits; empty where neither
    was measured."""
    rivals = [rival for row in rows for rival in rivals_of(row)]
    packed = [row for row in rows if row["kind"] == "pruned" and row["details"].get("packed_bytes")]
    if not rivals or not packed:
        return []

    def told(row: Row, size: int | None) -> str:
        accuracy = "" if row["mean"] is None else f"a mean of {percent(row['mean'], decimals)} %, "
        return f"{size_text(size)} ({accuracy}perplexity {number(row['perplexity'])})"

    pruned = ", ".join(told(row, row["details"]["packed_bytes"]) for row in packed)
    others = "; ".join(f"{rival['what']}: {told(rival, rival['file_bytes'])}" for rival in rivals)
    return [f"What the bytes buy: the pruned model without its zeros takes {pruned}. Rounded instead: {others}."]


def worse_text(rows: list[Row]) -> list[str]:
    """A plain sentence for every row that predicts the held-out texts worse than the pruned model, beyond doubt where
    there is more than one text: the validation pairs, which choose among trainings, do not show that."""
    before = next((row["perplexity"] for row in rows if row["kind"] == "pruned"), None)
    if before is None:
        return []
    return [
        f"{row['what']}: other text got worse: {_perplexity_in_words(row)} on the held-out texts, {number(before)} "
        f"before.{' Train with lower rates, or on more varied pairs.' if _trains(row) else ''}"
        for row in rows
        if row["kind"] in ("restored", "recovered") and _is_worse(row, before)
    ]


def _trains(row: Row) -> bool:
    """Whether there are rates and pairs to change."""
    return row["recovery"] not in RECOVERIES or RECOVERIES[row["recovery"]].trains


def _is_worse(row: Row, before: float) -> bool:
    if row["perplexity"] is None:
        return True
    ci95 = against_pruned(row).get("ci95")
    return bool(row["perplexity"] > before if ci95 is None else ci95[0] > 0)


def _perplexity_in_words(row: Row) -> str:
    if row["perplexity"] is None:
        return "perplexity beyond all bounds"
    shown, against = f"perplexity {number(row['perplexity'])}", against_pruned(row)
    if against.get("ci95") is None:
        return shown
    return f"{shown} (loss +{number(against['difference'], 3)} {bounds_text(against['ci95'])} nats a token)"
