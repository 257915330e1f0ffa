"""The report shows the grid's cells, all of them and no others."""

from pathlib import Path

import pytest
from rich.console import Console

from restorelcc.core.cell import Cell
from restorelcc.core.errors import BadInput
from restorelcc.io.documents import read_json, write_json
from restorelcc.io.layout import Layout
from restorelcc.report.config import ReportConfig
from restorelcc.report.stage import run
from restorelcc.report.tables import verdict
from restorelcc.report.terminal import print_results

CELLS = [Cell("a"), Cell("a", "wanda-0.5"), Cell("a", "wanda-0.5", "0.1"), Cell("a", "wanda-0.5", "0.25")]


def _metrics(cell: Cell, mean: float, recovered: dict | None = None) -> dict:
    content = {"model": cell.model, "pruning": cell.pruning, "mean": mean, "params_added": 64, "sparsity": 0.5}
    content["head_ratio"] = None if cell.head_ratio is None else float(cell.head_ratio)
    content["tasks"] = {"world_arc": {"metric": "acc", "value": mean, "stderr": 0.01, "n": 400}}
    content["perplexity"] = {"corpus": "heldout", "tokens": 10, "value": 3.5}
    return content | ({"recovered": recovered} if recovered else {})


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    for cell, mean in zip(CELLS, (0.95, 0.7, 0.8, 0.85), strict=True):
        share = (mean - 0.7) / 0.25
        recovered = {"mean": share, "ci95": [share - 0.1, share + 0.1]} if cell.head_ratio else None
        write_json(layout.metrics(cell), _metrics(cell, mean, recovered))
    return layout


def test_the_report_holds_every_cell_and_names_the_best_ratio(layout: Layout) -> None:
    run(CELLS, ReportConfig(), layout)
    text = (layout.report / "report.md").read_text()
    assert "| dense | 95.0 |" in text
    assert "| heads 0.25 | 85.0 | 60.0 | [50.0, 70.0] |" in text
    assert "Best head ratio 0.25: 60.0 % [50.0, 70.0] of the lost accuracy is back" in text
    assert [row["what"] for row in read_json(layout.report / "results.json")["rows"]] == [
        "dense",
        "pruned",
        "heads 0.1",
        "heads 0.25",
    ]


def test_cells_that_left_the_grid_are_not_reported(layout: Layout) -> None:
    run(CELLS[:3], ReportConfig(), layout)
    assert "heads 0.25" not in (layout.report / "report.md").read_text()


def test_a_missing_cell_is_named_and_the_old_report_stays(layout: Layout) -> None:
    run(CELLS, ReportConfig(), layout)
    before = (layout.report / "report.md").read_text()
    layout.metrics(CELLS[2]).unlink()
    with pytest.raises(BadInput, match=r"misses 1 of 4 grid cells \(data/metrics/a/wanda-0.5/heads-0.1.json\)"):
        run(CELLS, ReportConfig(), layout)
    assert (layout.report / "report.md").read_text() == before


def test_the_terminal_table_fits_eighty_columns(layout: Layout) -> None:
    run(CELLS, ReportConfig(), layout)
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    print_results(layout.report, console)
    text = console.export_text()
    assert "[50.0, 70.0]" in text
    assert "heads 0.25" in text
    table = [line for line in text.splitlines() if not line.startswith(("Best", "Report"))]
    assert max(map(len, table)) <= 80


def test_a_restoration_that_does_not_win_is_said_plainly() -> None:
    row = {"recovered": 0.1, "ci95": [-0.1, 0.3], "head_ratio": 0.1}
    assert verdict([row], 1).startswith("No head ratio restores accuracy beyond doubt")
    assert verdict([{"recovered": None}], 1).startswith("No share of the lost accuracy can be given")
    unbounded = {"recovered": 0.5, "ci95": [None, None], "head_ratio": 0.1}
    assert "unbounded" in verdict([unbounded], 1)
