"""The result table in a terminal."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

from rich.console import Console

from restorelcc.base.documents import read_document
from restorelcc.base.escaping import say, show_in_parts, table_of_rows
from restorelcc.stages.report.results import rivals_of
from restorelcc.stages.report.sentences import worse_text
from restorelcc.stages.report.tables import not_averaged, nothing_won, summary, task_columns, unchanged, verdict

_FIRST_TO_GO = ("params +", "sparsity %", "perplexity", "95 % interval")  # columns, where a terminal is narrow


def print_results(folder: Path, console: Console | None = None, *, as_json: bool = False) -> None:
    """Print one table per model and pruning from report/results.json, and where the report is; or the document."""
    console = console or Console()
    results = read_document(folder / "results.json")
    if as_json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
        return
    decimals, rows = results["decimals"], results["rows"]
    dense = {row["model"]: row for row in rows if row["pruning"] is None}
    pruned_rows = (row for row in rows if row["pruning"] is not None)
    for (model, pruning), group in groupby(pruned_rows, key=lambda row: (row["model"], row["pruning"])):
        shown = [*([dense[model]] if model in dense else []), *group]
        table_of_rows(summary(shown, decimals), f"{model}, {pruning}").show(console, _FIRST_TO_GO, "the report")
        console.print()
        if shown[0]["tasks"]:
            show_in_parts(console, [task_columns(each, decimals) for row in shown for each in (row, *rivals_of(row))])
        plainly = [verdict(shown, decimals), *nothing_won(shown, decimals), *worse_text(shown)]
        plainly += [*unchanged(shown), *filter(None, [not_averaged(shown)])]
        say(console, "\n".join([*plainly, ""]))
    if results.get("missing"):
        say(console, f"Not evaluated: {', '.join(results['missing'])}\n")
    say(console, f"Report: {folder / 'report.html'}")
