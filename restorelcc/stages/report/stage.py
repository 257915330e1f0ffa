"""Stage `report`: the whole grid as one page, as Markdown, as JSON, as figures and as plots for DVC."""

from __future__ import annotations

from restorelcc.base.cell import Cell
from restorelcc.base.documents import write_document
from restorelcc.base.layout import Layout
from restorelcc.base.publish import published
from restorelcc.stages.report import ReportConfig
from restorelcc.stages.report.markdown import markdown
from restorelcc.stages.report.page import drawings, page
from restorelcc.stages.report.plots import write_plots
from restorelcc.stages.report.provenance import stage_seconds
from restorelcc.stages.report.results import Results, read_results


def run(cells: list[Cell], config: ReportConfig, layout: Layout, settings: tuple[str, ...] = ()) -> Results:
    """Write report/: report.html, report.md, results.json, figures/ and plots/, of the grid's cells and no others.

    settings: `section.key=value` over params.yaml, which the results were computed with. Cells without metrics are
    named in all of them. Raises BadInput when no cell has any.
    """
    results = read_results(cells, layout)
    figures, stages = drawings(results), stage_seconds(cells, layout)
    with published(layout, layout.report) as (folder,):
        for kind in ("svg", "png"):
            (folder / "figures" / kind).mkdir(parents=True)
        document = {"title": config.title, "decimals": config.decimals, "missing": results.missing}
        write_document(
            folder / "results.json",
            document
            | {"stages": stages, "data": results.data, "rows": results.rows}
            | {"speed": [document for group in results.groups for document in group.speeds]},
        )
        (folder / "report.md").write_text(markdown(results, config, stages, settings), encoding="utf-8")
        (folder / "report.html").write_text(page(results, figures, config, stages, settings), encoding="utf-8")
        for figure in figures:
            for name, content in figure.files().items():
                (folder / "figures" / name.rpartition(".")[2] / name).write_bytes(content)
        write_plots(folder / "plots", results)
    return results
