"""Several comparisons at once: the more cells a grid has, the easier one of them looks like a gain by luck."""

from __future__ import annotations


def holm(p_values: list[float | None]) -> list[float | None]:
    """p adjusted so that, with no real difference anywhere, one below 0.05 turns up in 5 % of grids. Holm 1979.

    max over j <= i of (m - j) p_(j), for the m values in ascending order; None stays None and does not count.
    """
    order = sorted((p, position) for position, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, position) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[position] = largest
    return adjusted
