"""A plan as a table on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from restorelcc.base.escaping import PlainTable, say


def print_plan(plan: dict[str, Any]) -> None:
    """One row per stage, a total, and the assumptions behind the numbers."""
    gpu = plan["device"] == "cuda"
    title = f"{plan['model']} ({plan['source']}): {plan['parameters'] / 1e6:,.1f} M parameters, {plan['layers']} layers"
    table = PlainTable(title=title)
    for name in ("stage", "pruning", "runs", "memory", *(["GPU memory"] if gpu else []), "disk", "time"):
        table.add_column(name, justify="left" if name in ("stage", "pruning") else "right")
    for row in plan["stages"]:
        memory = [_size(row["memory"]), *([_size(row["gpu_memory"])] if gpu else [])]
        table.add_row(
            row["stage"], row["pruning"] or "", str(row["runs"]), *memory, _size(row["disk"]), _time(row["seconds"])
        )
    stages = plan["stages"]
    peak = [_size(max(row[name] for row in stages)) for name in ("memory", *(["gpu_memory"] if gpu else []))]
    total = [_size(sum(row["disk"] for row in stages)), _time(sum(row["seconds"] for row in stages))]
    table.add_section()
    table.add_row("most at once, sum", "", "", *peak, *total)
    console = Console()
    table.show(console, ("runs", "pruning", "disk"))
    console.print()
    say(
        console,
        f"Weights in {plan['dtype']} on the {plan['device']}; time at {plan['flops_per_second'] / 1e9:,.0f} GFLOP/s, "
        "a share of the matmul rate (docs/plan.md). Disk is in data/ and the hub's cache; DVC's cache needs as "
        "much again unless the file system links files.",
    )
    if budgets := plan.get("budgets"):
        told = ", ".join(
            f"{name} {_time(each['seconds'])} and {_size(each['memory'])}" for name, each in budgets.items()
        )
        say(console, f"With budget: {told} at most at once (models.{plan['model']}.budget).")
    say(console, f"Restored models are kept as {plan['restored']}.")


def _size(count: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count / 2**10:,.0f} KiB"


def _time(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"
