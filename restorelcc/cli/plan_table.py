"""A plan as a table on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from restorelcc.base.escaping import PlainTable, say

_WORTH_IT = 1.5  # times as fast


def print_plans(plans: list[dict[str, Any]], reason: str) -> None:
    """One plan after another. `reason`: why none of them says what is left to run."""
    console = Console()
    for number, plan in enumerate(plans):
        if number:
            console.print()
        _print_plan(console, plan)
    if reason:
        say(console, f"All stages are counted, whether they are finished or not: {reason.rstrip('.')}.")


def _print_plan(console: Console, plan: dict[str, Any]) -> None:
    """One row per stage, a total of what is left, and the assumptions behind the numbers."""
    gpu, left = plan["device"] == "cuda", plan["left"]
    title = f"{plan['model']} ({plan['source']}): {plan['parameters'] / 1e6:,.1f} M parameters, {plan['layers']} layers"
    table = PlainTable(title=title)
    counted = ["runs", *(["to run"] if left else [])]
    for name in ("stage", "pruning", *counted, "memory", *(["GPU memory"] if gpu else []), "disk", "time"):
        table.add_column(name, justify="left" if name in ("stage", "pruning") else "right")
    for row in plan["stages"]:
        memory = [size_text(row["memory"]), *([size_text(row["gpu_memory"])] if gpu else [])]
        table.add_row(
            " ".join(filter(None, (row["stage"], row["recovery"]))),
            row["pruning"] or "",
            str(row["runs"]),
            *([to_run_text(row)] if left else []),
            *memory,
            size_text(row["disk"]),
            time_text(row["seconds"]),
        )
    total = left or _of_all(plan["stages"])
    peaks = [size_text(total[name]) for name in ("memory", *(["gpu_memory"] if gpu else []))]
    table.add_section()
    table.add_row(
        f"{'left: ' if left else ''}most at once, sum",
        *([""] * (1 + len(counted))),
        *peaks,
        size_text(total["disk"]),
        time_text(total["seconds"]),
    )
    table.show(console, ("runs", "disk", "pruning"), "--json")  # without the pruning, rows of several look alike
    console.print()
    say(
        console,
        f"Weights in {plan['dtype']} on the {plan['device']}; time at {plan['flops_per_second'] / 1e9:,.0f} GFLOP/s, "
        "a share of the matmul rate (docs/plan.md). Disk is in data/ and the hub's cache; DVC's cache needs as "
        "much again unless the file system links files.",
    )
    if (faster := plan["bfloat16_speedup"]) and faster >= _WORTH_IT:
        say(
            console,
            f"In bfloat16 this machine multiplies matrices {faster:.1f} times as fast: with `dtype: bfloat16` under "
            f"models.{plan['model']}, all stages compute in it. Results then differ from those in float32, and are "
            "never compared with them.",
        )
    if budgets := plan.get("budgets"):
        told = ", ".join(
            f"{name} {time_text(each['seconds'])} and {size_text(each['memory'])}"
            + (f" with {size_text(each['gpu_memory'])} on the GPU" if each["gpu_memory"] else "")
            for name, each in budgets.items()
        )
        say(console, f"All stages with budget: {told} at most at once (models.{plan['model']}.budget).")
    if known := plan["accuracy"]:
        say(
            console,
            f"The mean accuracy over {known['items']:,} items of {known['tasks']} tasks has a standard error of up to "
            f"{100 * known['standard_error']:.1f} points.",
        )
    say(console, f"Restored models are kept as {plan['restored']}.")


def to_run_text(row: dict[str, Any]) -> str:
    """`all`, `none`, `2 of 5`."""
    if row["to_run"] in (0, row["runs"]):
        return "all" if row["to_run"] else "none"
    return f"{row['to_run']} of {row['runs']}"


def _of_all(stages: list[dict[str, Any]]) -> dict[str, float]:
    """The most memory, and the sum of disk and time."""
    most = {name: max(row[name] for row in stages) for name in ("memory", "gpu_memory")}
    return most | {name: sum(row[name] for row in stages) for name in ("disk", "seconds")}


def size_text(count: float) -> str:
    """`3.1 GiB`, of bytes."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count / 2**10:,.0f} KiB"


def time_text(seconds: float) -> str:
    """`42 s`, `3.5 min`, `2.1 h`."""
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"
