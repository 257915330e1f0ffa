"""The report as Markdown: the text of the page, without its figures."""

from __future__ import annotations

from restorelcc.base.errors import one_line
from restorelcc.base.escaping import code_for_markdown, for_markdown, markdown_table
from restorelcc.stages.report import ReportConfig
from restorelcc.stages.report.provenance import NOTES, artifacts, commands, data_rows, packages
from restorelcc.stages.report.results import Group, Results, rivals_of
from restorelcc.stages.report.sentences import how_pruned, same_bytes, worse_text
from restorelcc.stages.report.speeds import how_timed, speed_table
from restorelcc.stages.report.tables import (
    Table,
    comparison_note,
    cost_columns,
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


def markdown(results: Results, config: ReportConfig, stages: Table, settings: tuple[str, ...] = ()) -> str:
    """One chapter per model and pruning; missing cells first, notes, seconds of the stages and commands last."""
    lines = [f"# {for_markdown(config.title)}", ""]
    if results.missing:
        lines += [f"**{len(results.missing)} grid cells have not been evaluated:**", ""]
        lines += [*(f"- {code_for_markdown(path)}" for path in results.missing), ""]
    for group in results.groups:
        lines += _chapter(group, config.decimals)
    note = comparison_note(results.rows)
    lines += [*([for_markdown(note), ""] if note else []), "## Notes", ""]
    lines += [*(f"- {for_markdown(note)}" for note in NOTES), ""]
    lines += ["## Provenance", "", *markdown_table(task_facts(results.rows)), *markdown_table(data_rows(results))]
    lines += markdown_table(packages(results)) + markdown_table(artifacts(results)) + markdown_table(stages)
    return "\n".join([*lines, "```sh", *map(one_line, commands(results, settings)), "```", ""])


def _chapter(group: Group, decimals: int) -> list[str]:
    rows = group.rows
    shown = [each for row in rows for each in (row, *rivals_of(row))]
    lines = [f"## {for_markdown(f'{group.model}, {group.pruning}')}", "", *markdown_table(summary(rows, decimals))]
    if rows[0]["tasks"]:
        lines += markdown_table([task_columns(row, decimals) for row in shown])
    plainly = [*nothing_won(rows, decimals), *worse_text(rows), *same_bytes(rows, decimals), not_averaged(rows)]
    lines += _paragraphs(verdict(rows, decimals), *filter(None, plainly))
    lines += markdown_table(picks(rows, decimals))
    lines += _paragraphs(
        *(f"{row['what']} is degenerate: {'; '.join(row['generation']['reasons'])}." for row in degenerate(rows))
    )
    lines += _paragraphs(*unchanged(rows), *how_pruned(group))
    lines += markdown_table([tests_columns(row, decimals) for row in group.recovering if row["difference"] is not None])
    lines += markdown_table([perplexity_columns(row) for row in shown])
    lines += markdown_table([text_columns(row) for row in rows])
    lines += markdown_table([cost_columns(row) for row in shown])
    for document in group.speeds:
        lines += [*markdown_table(speed_table(document)), *_paragraphs(how_timed(document))]
    lines += markdown_table(layer_table(group))
    return lines + _heads(group)


def _paragraphs(*sentences: str) -> list[str]:
    return [line for sentence in sentences for line in (for_markdown(sentence), "")]


def degenerate(rows: list[dict]) -> list[dict]:
    """Rows whose model no longer writes sensible text."""
    return [row for row in rows if (row["generation"] or {}).get("degenerate")]


def _heads(group: Group) -> list[str]:
    lines = []
    for row in group.of_kind("restored"):
        heads = row["details"].get("heads")
        if heads:
            chosen = ", ".join(f"{layer}.{head}" for layer, head in heads["chosen"])
            what = f"{row['what']}: {len(heads['chosen'])} heads, as layer.head, best first: {chosen}."
            lines += _paragraphs(what)
    return lines
