"""Is the dense model worth comparing with? The most common cause of wrong results is a broken checkpoint."""

from __future__ import annotations

import math
from typing import Any

_INFORMATIVE = 0.05  # half-width of the interval below which a model near chance is called one at chance


def complaint(rows: list[dict[str, Any]], perplexity: float | None, vocabulary: int) -> str | None:
    """Why the dense model cannot be right, with the numbers; None when it may be.

    At chance: the 95 % interval of its mean accuracy over tasks reaches down to guessing (1 / choices of every item),
    and there are items enough for that to mean something. Absurd: its perplexity is above half of its vocabulary,
    where a model that knows nothing, giving every token the same probability, has all of it.
    """
    if perplexity is None or perplexity >= vocabulary / 2:
        shown = "beyond all bounds" if perplexity is None else f"{perplexity:,.1f}"
        return (
            f"its perplexity on the held-out texts is {shown}, and guessing among the {vocabulary:,} tokens of its "
            f"vocabulary gives {vocabulary:,}"
        )
    found = accuracy_against_chance(rows)
    if found is None:
        return None
    mean, chance, half_width, items = found
    if mean - half_width <= chance and half_width <= _INFORMATIVE:
        return (
            f"its mean accuracy is {mean:.1%} +- {half_width:.1%} over {items:,} items, and guessing gives {chance:.1%}"
        )
    return None


def accuracy_against_chance(rows: list[dict[str, Any]]) -> tuple[float, float, float, int] | None:
    """(mean over tasks of accuracy, of chance, half-width of its 95 % interval, items) of multiple-choice items."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if len(row["log_likelihoods"]) > 1:
            by_task.setdefault(row["task"], []).append(row)
    if not by_task:
        return None
    accuracies, chances, variance = [], [], 0.0
    for items in by_task.values():
        accuracy = sum(row["score"] for row in items) / len(items)
        accuracies.append(accuracy)
        chances.append(sum(1 / len(row["log_likelihoods"]) for row in items) / len(items))
        variance += accuracy * (1 - accuracy) / len(items)
    tasks = len(by_task)
    half_width = 1.96 * math.sqrt(variance) / tasks
    return sum(accuracies) / tasks, sum(chances) / tasks, half_width, sum(map(len, by_task.values()))
