"""The result table in a terminal."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from restorelcc.base.documents import read_document
from restorelcc.stages.report.tables import not_averaged, nothing_won, summary, task_columns, unchanged, verdict


def print_results(folder: Path, console: Console | None = None) -> None:
    """Print one table per model and pruning from report/results.json, and where the report is."""
    console = console or Console()
    results = read_document(folder / "results.json")
    decimals, rows = results["decimals"], results["rows"]
    dense = {row["model"]: row for row in rows if row["pruning"] is None}
    pruned_rows = (row for row in rows if row["pruning"] is not None)
    for (model, pruning), group in groupby(pruned_rows, key=lambda row: (row["model"], row["pruning"])):
        shown = [*([dense[model]] if model in dense else []), *group]
        console.print(_table(f"{model}, {pruning}", summary(shown, decimals)))
        if shown[0]["tasks"]:
            console.print(_table("", [task_columns(row, decimals) for row in shown]))
        plainly = [verdict(shown, decimals), *nothing_won(shown, decimals), *unchanged(shown), not_averaged(shown)]
        console.print("\n".join(filter(None, plainly)), "\n", highlight=False, soft_wrap=True)
    if results.get("missing"):
        console.print(f"Not evaluated: {', '.join(results['missing'])}\n", highlight=False, soft_wrap=True)
    console.print(f"Report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _table(title: str, rows: list[dict[str, str]]) -> Table:
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for position, name in enumerate(rows[0]):
        # Long task names may break after their underscore.
        table.add_column(name.replace("_", "_\n", 1), justify="right" if position else "left", no_wrap=not position)
    for row in rows:
        table.add_row(*row.values())
    return table
