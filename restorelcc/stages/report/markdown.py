"""The report as Markdown: the text of the page, without its figures."""

from __future__ import annotations

from restorelcc.stages.report import ReportConfig
from restorelcc.stages.report.provenance import NOTES, artifacts, commands, data_rows, packages
from restorelcc.stages.report.results import Group, Results
from restorelcc.stages.report.tables import (
    Table,
    comparison_note,
    cost_columns,
    how_pruned,
    layer_table,
    not_averaged,
    nothing_won,
    perplexity_columns,
    picks,
    summary,
    task_columns,
    task_facts,
    tests_columns,
    text_columns,
    unchanged,
    verdict,
)


def markdown(results: Results, config: ReportConfig, stages: Table) -> str:
    """One chapter per model and pruning; missing cells first, notes, seconds of the stages and commands last."""
    lines = [f"# {config.title}", ""]
    if results.missing:
        lines += [f"**{len(results.missing)} grid cells have not been evaluated:**", ""]
        lines += [*(f"- `{path}`" for path in results.missing), ""]
    for group in results.groups:
        lines += _chapter(group, config.decimals)
    note = comparison_note(results.rows)
    lines += [*([note, ""] if note else []), "## Notes", "", *(f"- {note}" for note in NOTES), ""]
    lines += ["## Provenance", "", *_table(task_facts(results.rows)), *_table(data_rows(results))]
    lines += _table(packages(results)) + _table(artifacts(results)) + _table(stages)
    return "\n".join([*lines, "```sh", *commands(results), "```", ""])


def _chapter(group: Group, decimals: int) -> list[str]:
    rows = group.rows
    lines = [f"## {group.model}, {group.pruning}", "", *_table(summary(rows, decimals))]
    if rows[0]["tasks"]:
        lines += _table([task_columns(row, decimals) for row in rows])
    plainly = [*nothing_won(rows, decimals), not_averaged(rows)]
    lines += [verdict(rows, decimals), "", *(f"{sentence}\n" for sentence in plainly if sentence)]
    lines += _table(picks(rows, decimals))
    lines += [f"{row['what']} is degenerate: {'; '.join(row['generation']['reasons'])}.\n" for row in degenerate(rows)]
    lines += [f"{sentence}\n" for sentence in [*unchanged(rows), *how_pruned(group)]]
    lines += _table([tests_columns(row, decimals) for row in group.recovering if row["difference"] is not None])
    lines += _table([perplexity_columns(row) for row in rows])
    lines += _table([text_columns(row) for row in rows])
    lines += _table([cost_columns(row) for row in rows])
    lines += _table(layer_table(group))
    return lines + _heads(group)


def degenerate(rows: list[dict]) -> list[dict]:
    """Rows whose model no longer writes sensible text."""
    return [row for row in rows if (row["generation"] or {}).get("degenerate")]


def _heads(group: Group) -> list[str]:
    lines = []
    for row in group.of_kind("restored"):
        heads = row["details"].get("heads")
        if heads:
            chosen = ", ".join(f"{layer}.{head}" for layer, head in heads["chosen"])
            lines += [f"{row['what']}: {len(heads['chosen'])} heads, as layer.head, best first: {chosen}.", ""]
    return lines


def _table(rows: Table) -> list[str]:
    if not rows:
        return []
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    return [*lines, *("| " + " | ".join(row.values()) + " |" for row in rows), ""]
