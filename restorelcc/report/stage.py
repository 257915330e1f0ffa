"""Stage `report`: the whole grid in one table, as Markdown and JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from restorelcc.core.cell import Cell
from restorelcc.core.errors import BadInput
from restorelcc.io.documents import read_json, write_json
from restorelcc.io.layout import Layout
from restorelcc.io.scratch import published
from restorelcc.report.config import ReportConfig
from restorelcc.report.tables import result_rows, summary_columns, task_columns, verdict

Group = tuple[str, str, list[dict[str, Any]]]  # model, pruning, rows


def run(cells: list[Cell], config: ReportConfig, layout: Layout) -> None:
    """Write report/report.md and report/results.json from the grid's cells, and no others."""
    groups = list(_groups(cells, layout))
    with published(layout, layout.report) as (folder,):
        folder.mkdir()
        write_json(
            folder / "results.json", {"title": config.title, "decimals": config.decimals, "rows": _unique(groups)}
        )
        (folder / "report.md").write_text(markdown(groups, config), encoding="utf-8")


def _groups(cells: list[Cell], layout: Layout) -> Iterator[Group]:
    missing = [
        str(layout.metrics(cell).relative_to(layout.root)) for cell in cells if not layout.metrics(cell).is_file()
    ]
    if missing:
        raise BadInput(
            f"the report misses {len(missing)} of {len(cells)} grid cells ({', '.join(missing)}): run dvc repro"
        )
    rows = dict(zip(cells, result_rows([read_json(layout.metrics(cell)) for cell in cells]), strict=True))
    for pruned in (cell for cell in cells if cell.is_pruned):
        assert pruned.pruning
        restored = [row for cell, row in rows.items() if (cell.model, cell.pruning) == (pruned.model, pruned.pruning)]
        yield pruned.model, pruned.pruning, [rows[Cell(pruned.model)], *restored]


def _unique(groups: list[Group]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for _, _, group in groups:
        rows += [row for row in group if row not in rows]
    return rows


def markdown(groups: list[Group], config: ReportConfig) -> str:
    """The report as Markdown: one table and one sentence per model and pruning."""
    lines = [f"# {config.title}", ""]
    for model, pruning, rows in groups:
        lines += [f"## {model}, {pruning}", ""]
        lines += _table([summary_columns(row, config.decimals) for row in rows])
        if rows[0]["tasks"]:
            lines += _table([task_columns(row, config.decimals) for row in rows])
        lines += [verdict(rows, config.decimals), ""]
    lines += [
        "Accuracy by lm-eval, zero-shot, in percent. Recovered = (restored - pruned) / (dense - pruned) of mean",
        "accuracy, with a paired bootstrap 95 % interval over the test items. Every number is of one training seed.",
        "",
    ]
    return "\n".join(lines)


def _table(rows: list[dict[str, str]]) -> list[str]:
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    return [*lines, *("| " + " | ".join(row.values()) + " |" for row in rows), ""]
