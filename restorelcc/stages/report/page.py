"""The report as one self-contained page: a Jinja template, tables as text, figures as SVG elements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from restorelcc.base.errors import one_line
from restorelcc.base.escaping import for_html
from restorelcc.stages.report import ReportConfig, sentences, tables
from restorelcc.stages.report import figures as draw
from restorelcc.stages.report.markdown import degenerate
from restorelcc.stages.report.provenance import NOTES, artifacts, commands, data_rows, packages
from restorelcc.stages.report.results import Group, Results, rivals_of
from restorelcc.stages.report.speeds import how_timed, speed_table


@dataclass(frozen=True)
class Figure:
    """One drawing with its caption; `kind` says which section of its group it belongs to."""

    group: str
    kind: str
    name: str
    caption: str
    draw: draw.Draw

    def svg(self) -> Markup:
        return Markup(draw.page_svg(self.draw, self.name, for_html(self.caption)))

    def files(self) -> dict[str, bytes]:
        return draw.static_files(self.draw, self.name)


def drawings(results: Results) -> list[Figure]:
    """Every figure that the results allow, in the order of the page."""
    return [figure for group in results.groups for figure in _of_group(group)]


# What `_of_group` draws, where there is something to draw.
KINDS = ("recovered", "tasks", "heads", "spectra", "layers")


def _of_group(group: Group) -> Iterator[Figure]:
    def figure(kind: str, caption: str, drawing: draw.Draw | None, suffix: str = "") -> Iterator[Figure]:
        if drawing is not None:
            yield Figure(slug(group), kind, f"{slug(group)}-{kind}{suffix}", caption, drawing)

    yield from figure(
        "recovered", "Share of the lost accuracy that was recovered, by share of heads", draw.recovered_figure(group)
    )
    yield from figure("tasks", "Share of right answers; whiskers are 95 % intervals", draw.tasks_figure(group))
    for row in group.of_kind("restored"):
        ratio = row["what"].removeprefix("heads ")  # 0.25, or "auto (0.25)", which may both be there
        caption = f"Heads by rank, a stronger colour is better; rings mark the heads chosen at {ratio}"
        yield from figure("heads", caption, draw.heads_figure(group, row), f"-{ratio.partition(' ')[0]}")
    yield from figure("spectra", "Lost energy of each layer, by component", draw.spectra_figure(group))
    yield from figure(
        "layers", "Zeros in each layer, and the error they cause in its outputs", draw.layers_figure(group)
    )


def slug(group: Group) -> str:
    """A name for links and files: letters, digits, dots and dashes."""
    return f"{group.model}-{group.pruning}"


def page(
    results: Results,
    figures: list[Figure],
    config: ReportConfig,
    stages: tables.Table,
    settings: tuple[str, ...] = (),
) -> str:
    """The whole page. stages: seconds of each stage, if they are known; settings: as `commands` has them."""
    environment = Environment(
        loader=PackageLoader("restorelcc.stages.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_shown,
    )
    groups = [_context(group, figures, config.decimals) for group in results.groups]
    return environment.get_template("report.html.j2").render(
        title=config.title,
        groups=groups,
        missing=results.missing,
        note=tables.comparison_note(results.rows),
        notes=NOTES,
        facts=tables.task_facts(results.rows),
        data=data_rows(results),
        packages=packages(results),
        artifacts=artifacts(results),
        stages=stages,
        commands=commands(results, settings),
        palette=draw.LIGHT,
    )


def _shown(value: Any) -> Any:
    """What the template prints: text with its control characters as escapes; figures, which are markup, as they are."""
    return one_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _context(group: Group, figures: list[Figure], decimals: int) -> dict[str, Any]:
    rows = group.rows
    best = max(
        (row for row in group.recovering if tables.won_back(row)),
        key=lambda row: row["recovered"],
        default=None,
    )
    own, count = [figure for figure in figures if figure.group == slug(group)], tables.compared(rows)
    shown = [each for row in rows for each in (row, *rivals_of(row))]
    by_kind = {kind: [figure for figure in own if figure.kind == kind] for kind in KINDS}
    return {
        "name": f"{group.model}, {group.pruning}",
        "slug": slug(group),
        "verdict": tables.verdict(rows, decimals),
        "plainly": [
            *tables.nothing_won(rows, decimals),
            *sentences.worse_text(rows),
            *sentences.same_bytes(rows, decimals),
            *sentences.how_pruned(group),
            *filter(None, [tables.not_averaged(rows)]),
        ],
        "best": best
        and {"share": tables.percent(best["recovered"], decimals), "what": best["what"]}
        | {"interval": tables.interval_text(best["ci95"], decimals), "count": count},
        "summary": tables.summary(rows, decimals),
        "picks": tables.picks(rows, decimals),
        "flags": [(row["what"], row["generation"]["reasons"]) for row in degenerate(rows)],
        "unchanged": tables.unchanged(rows),
        "tasks": [tables.task_columns(row, decimals) for row in shown] if rows[0]["tasks"] else [],
        "tests": [tables.tests_columns(row, decimals) for row in group.recovering if row["difference"] is not None],
        "perplexity": [tables.perplexity_columns(row) for row in shown],
        "text": [tables.text_columns(row) for row in rows],
        "continuations": [(row["what"], row["details"].get("continuations") or []) for row in rows],
        "cost": [tables.cost_columns(row) for row in shown],
        "speeds": [(speed_table(each), how_timed(each)) for each in group.speeds],
        "layers": tables.layer_table(group),
        "score": (group.detail("heads") or {}).get("score"),
        "figures": by_kind,
    }
