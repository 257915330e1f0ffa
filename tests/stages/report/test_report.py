"""The report shows the grid's cells, all of them and no others, and names those that are missing."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from restorelcc.base.cell import Cell
from restorelcc.base.documents import read_document, read_json, rounded, write_document
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.tables import MEASURED, SAMPLES, write_table
from restorelcc.cli.app import app
from restorelcc.stages.report import ReportConfig
from restorelcc.stages.report.figures import LIGHT, recovered_figure, static_files
from restorelcc.stages.report.page import drawings
from restorelcc.stages.report.provenance import commands
from restorelcc.stages.report.results import changed_since, gone_since, holm, read_results
from restorelcc.stages.report.sentences import worse_text
from restorelcc.stages.report.stage import run
from restorelcc.stages.report.tables import (
    number,
    p_text,
    percent,
    picks,
    size_text,
    summary,
    task_facts,
    verdict,
)
from restorelcc.stages.report.terminal import print_results
from tests.fingerprints import SWAPS, swapped
from tests.stages.report.cells import CELLS, FINGERPRINT, details, metrics, write_grid

SECTIONS = ("headline", "recovered", "tasks", "heads", "spectra", "sparsity", "text", "cost", "provenance")


@pytest.fixture
def drawn(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    write_grid(layout)
    return layout


@pytest.fixture
def layout(drawn: Layout, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """The same, for tests that look at texts: of every figure the page's own is drawn, and no file beside the page."""
    monkeypatch.setattr("restorelcc.stages.report.figures.static_files", lambda *_: {})
    return drawn


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A report of the whole grid, for tests that only read it."""
    layout = Layout(tmp_path_factory.mktemp("made"))
    write_grid(layout)
    run(CELLS, ReportConfig(title="Mine & yours"), layout)
    return layout


def _texts(layout: Layout) -> dict[str, str]:
    return {name: (layout.report / name).read_text() for name in ("report.md", "report.html", "results.json")}


def test_the_report_holds_every_cell_and_names_the_best_ratio(made: Layout) -> None:
    texts = _texts(made)
    assert "| dense | 95.0 |" in texts["report.md"]
    assert "| heads 0.25 | 85.0 | 60.0 | [50.0, 70.0] |" in texts["report.md"]
    for name in ("report.md", "report.html"):
        assert "Best head ratio 0.25: 60.0 % [50.0, 70.0] of the lost accuracy was recovered" in texts[name]
        assert "2 models are compared with their pruned model" in texts[name]
    rows = read_json(made.report / "results.json")["rows"]
    assert [row["what"] for row in rows] == ["dense", "pruned", "heads 0.1", "heads 0.25"]
    assert [row["p_holm"] for row in rows] == [None, None, 0.02, 0.02]


def test_the_page_has_its_sections_and_needs_nothing_from_outside(made: Layout) -> None:
    page = _texts(made)["report.html"]
    assert re.findall(r'data-section="(\w+)"', page) == list(SECTIONS)
    assert "<title>Mine &amp; yours</title>" in page
    assert page.count("<svg ") == 6, "recovered, tasks, two head maps, spectra, layers"
    assert "one &lt;b&gt;" in page, "text that a model wrote is text"
    addresses = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')> ]+)', page)
    assert {address for address in addresses if not address.startswith(("#", "data:,"))} == set()
    assert "<script" not in page
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)


def test_every_colour_of_a_drawing_is_a_variable(made: Layout) -> None:
    page = _texts(made)["report.html"]
    drawn = "".join(re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL))
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", drawn)) - {"none"} == {
        f"var(--{name})" for name in ("text", "muted", "line", "dense", "pruned", "series-1", "series-2")
    }


def test_figures_also_lie_beside_the_page_and_the_same_grid_gives_the_same_bytes(drawn: Layout) -> None:
    layout = drawn
    run(CELLS, ReportConfig(), layout)
    first = {path.name: path.read_bytes() for path in layout.report.rglob("*") if path.is_file()}
    names = {name for name in first if name.endswith((".png", ".svg"))}
    kinds = ("recovered", "tasks", "heads-0.1", "heads-0.25", "spectra", "layers")
    assert names == {f"a-wanda-0.5-{kind}.{ending}" for kind in kinds for ending in ("svg", "png")}
    run(CELLS, ReportConfig(), layout)
    assert first == {path.name: path.read_bytes() for path in layout.report.rglob("*") if path.is_file()}


def test_the_chosen_ratio_and_an_equal_one_are_drawn_apart(layout: Layout) -> None:
    auto = Cell("a", "wanda-0.5", "auto")
    measured = metrics(replace(auto, head_ratio="0.25"), 0.85) | {"head_ratio_auto": True}
    write_document(layout.metrics(auto), measured)
    write_document(layout.details(auto), details(replace(auto, head_ratio="0.25"), 0.85))
    drawn = [figure for figure in drawings(read_results([*CELLS, auto], layout)) if figure.kind == "heads"]
    assert [figure.name for figure in drawn] == [f"a-wanda-0.5-heads-{ratio}" for ratio in ("0.1", "0.25", "auto")]
    assert [figure.caption.rpartition(" at ")[2] for figure in drawn] == ["0.1", "0.25", "auto (0.25)"]


def test_the_commands_that_do_it_again_stand_each_on_a_line_of_its_own(made: Layout) -> None:
    expected = [
        "restorelcc run --model a",
        "restorelcc table",
        "restorelcc evaluate_restored --model a --pruning wanda-0.5 --head-ratio 0.1",
        "restorelcc compare data/metrics/a/wanda-0.5/pruned.json data/metrics/a/wanda-0.5/heads-0.1.json",
    ]
    texts = _texts(made)
    shown = (
        texts["report.html"].partition("<h3>Again</h3>")[2].partition("<pre><code>")[2].partition("</code></pre>")[0]
    )
    assert shown.splitlines() == expected
    assert texts["report.md"].partition("```sh\n")[2].partition("\n```")[0].splitlines() == expected
    of_a_run = commands(read_results(CELLS, made), ('grid.model=["a"]', "prune.samples=64", "grid.head_ratio=[0.1, 1]"))
    given = "--set prune.samples=64 --set 'grid.head_ratio=[0.1, 1]'"
    assert of_a_run == [f"{expected[0]} {given}", expected[1], f"{expected[2]} {given}", expected[3]]


@pytest.mark.parametrize("label", ["1.0", "1", "auto", "0.3333333333"])
def test_a_head_ratio_is_written_as_in_the_names_of_files(label: str, layout: Layout) -> None:
    cell = Cell("a", "wanda-0.5", label)
    auto = {"head_ratio": 0.25, "head_ratio_auto": True} if label == "auto" else {}
    ratio = "1" if label == "auto" else label
    write_document(layout.metrics(cell), rounded(metrics(replace(cell, head_ratio=ratio), 0.85)) | auto)
    write_document(layout.details(cell), details(replace(cell, head_ratio="1"), 0.85))
    grid = [*CELLS[:2], cell]
    run(grid, ReportConfig(), layout)
    again = _texts(layout)["report.md"].partition("```sh\n")[2].partition("\n```")[0].splitlines()
    assert again[2] == f"restorelcc evaluate_restored --model a --pruning wanda-0.5 --head-ratio {label}"
    assert again[3].endswith(f" data/metrics/a/wanda-0.5/heads-{label}.json")
    assert layout.metrics(cell).relative_to(layout.root).as_posix() == again[3].rpartition(" ")[2]
    assert changed_since(layout) == []
    write_document(layout.metrics(cell), read_json(layout.metrics(cell)) | {"mean": 0.123})
    assert changed_since(layout) == [str(cell)]


def test_text_that_got_worse_is_told_wherever_the_verdict_is(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    for cell, perplexity in zip(CELLS[1:], (3.5, 3.5, 4.75), strict=True):
        told = read_json(layout.metrics(cell))
        write_document(layout.metrics(cell), told | {"perplexity": told["perplexity"] | {"value": perplexity}})
    run(CELLS, ReportConfig(), layout)
    print_results(layout.report, Console(width=200))
    texts = _texts(layout)
    for text in (texts["report.md"], texts["report.html"], capsys.readouterr().out):
        assert text.count("other text got worse") == 1
        assert "heads 0.25: other text got worse: perplexity 4.75 on the held-out texts, 3.50 before" in text


def test_who_trains_nothing_is_not_told_to_train_otherwise(layout: Layout) -> None:
    cells = [Cell("a", "wanda-0.5", recovery=name) for name in ("masked", "meanshift", "eora")]
    for cell in cells:
        content = metrics(cell, 0.8)
        content |= {"recovery": cell.recovery, "perplexity": content["perplexity"] | {"value": 4.75}}
        write_document(layout.metrics(cell), content)
        write_document(layout.details(cell), details(cell, 0.8))
    said = worse_text(read_results([*CELLS[:2], *cells], layout).rows)
    assert [sentence.partition(":")[0] for sentence in said] == ["masked", "meanshift", "eora"]
    assert [sentence.endswith("3.50 before.") for sentence in said] == [False, True, True]
    assert said[0].endswith("3.50 before. Train with lower rates, or on more varied pairs.")


@pytest.mark.parametrize(("ci95", "told"), [([0.101, 0.402], True), ([-0.01, 0.402], False)])
def test_text_got_worse_only_beyond_doubt(layout: Layout, ci95: list[float], told: bool) -> None:
    cell = CELLS[-1]
    measured, beside = read_json(layout.metrics(cell)), read_json(layout.details(cell))
    write_document(layout.metrics(cell), measured | {"perplexity": measured["perplexity"] | {"value": 4.75}})
    found = {"pruned": {"first": 1.0, "second": 1.25, "difference": 0.25, "ci95": ci95, "n": 9}}
    write_document(layout.details(cell), beside | {"heldout": found})
    run(CELLS, ReportConfig(), layout)
    for text in (_texts(layout)["report.md"], _texts(layout)["report.html"]):
        sentence = "heads 0.25: other text got worse: perplexity 4.75 (loss +0.250 [0.1010, 0.4020] nats a token) on"
        assert (sentence in text) is told
        assert f"[{ci95[0]:.4f}, 0.4020]" in text and "0.2500" in text, "of every row, in the table of perplexities"


def test_dvc_plots_get_one_row_per_point(made: Layout) -> None:
    rows = list(csv.DictReader((made.report / "plots" / "recovered.csv").open()))
    assert [(row["head_ratio"], float(row["recovered"])) for row in rows] == [
        ("0.1", pytest.approx(0.4)),
        ("0.25", pytest.approx(0.6)),
    ]
    assert len(list(csv.DictReader((made.report / "plots" / "tasks.csv").open()))) == 8


def test_results_per_item_that_are_not_those_of_the_metrics_are_refused(layout: Layout) -> None:
    """The numbers of the report are means over them."""
    path = layout.samples(CELLS[1])
    items = [{"task": "t", "item_id": 0, "digest": "d", "gold": 1, "prediction": 1, "correct": True, "score": 1.0}]
    write_table(path, items, SAMPLES, {MEASURED: FINGERPRINT.as_text()})
    read_results(CELLS, layout)
    changed = pq.read_table(path).set_column(6, SAMPLES.field("score"), pa.array([0.0]))
    pq.write_table(changed, path)
    with pytest.raises(BadInput, match=r"pruned\.parquet was changed since it was written"):
        read_results(CELLS, layout)
    path.write_bytes(b"PAR1")
    with pytest.raises(BadInput, match="is not a readable Parquet file"):
        read_results(CELLS, layout)
    other = replace(FINGERPRINT, limit=5)
    write_table(path, items, SAMPLES, {MEASURED: other.as_text()})
    with pytest.raises(BadInput, match="belongs to another run than the metrics"):
        read_results(CELLS, layout)


def test_cells_that_left_the_grid_are_not_reported(layout: Layout) -> None:
    run(CELLS[:3], ReportConfig(), layout)
    for text in _texts(layout).values():
        assert "heads 0.1" in text
        assert "heads 0.25" not in text


@pytest.mark.parametrize("gone", [0, 2], ids=["dense", "restored"])
def test_a_missing_cell_is_named_in_every_form(layout: Layout, gone: int) -> None:
    path = layout.metrics(CELLS[gone])
    path.unlink()
    results = run(CELLS, ReportConfig(), layout)
    name = str(path.relative_to(layout.root))
    assert results.missing == [name]
    for text in _texts(layout).values():
        assert name in text
    assert "1 grid cell has not been evaluated" in _texts(layout)["report.html"]
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    print_results(layout.report, console)
    assert name in console.export_text().replace("\n", "")


def test_where_nothing_was_lost_or_nothing_restored_the_page_says_so(layout: Layout) -> None:
    for cell in CELLS:
        metrics = read_json(layout.metrics(cell))
        if "recovered" in metrics:
            metrics["recovered"] = {"mean": None, "ci95": None, "method": "paired bootstrap", "reason": "nothing lost"}
            write_document(layout.metrics(cell), metrics)
    run(CELLS, ReportConfig(), layout)
    assert "No recovered share can be given for this group." in _texts(layout)["report.html"]
    run([cell for cell in CELLS if cell.head_ratio is None], ReportConfig(), layout)
    assert "No restored model of this group has been evaluated." in _texts(layout)["report.html"]


def test_seconds_of_the_stages_that_ran_here_are_in_every_form(layout: Layout) -> None:
    layout.logs.mkdir(parents=True)
    write_document(layout.logs / "prune@x.json", {"stage": "prune", "cell": str(CELLS[1]), "seconds": 12.34})
    run(CELLS, ReportConfig(), layout)
    texts = _texts(layout)
    assert "| prune | 1 | 12.3 | 12.3 |" in texts["report.md"]
    assert "12.3" in texts["report.html"] and '"prune"' in texts["results.json"]
    assert "Where DVC has brought an earlier result back since, that was another run;" in texts["report.html"]


def test_without_any_cell_there_is_no_report_and_the_old_one_stays(layout: Layout) -> None:
    run(CELLS, ReportConfig(), layout)
    before = _texts(layout)
    for cell in CELLS:
        layout.metrics(cell).unlink()
    with pytest.raises(BadInput, match=r"none of the 4 grid cells has been evaluated \(data/metrics/a/dense.json"):
        run(CELLS, ReportConfig(), layout)
    assert _texts(layout) == before


def test_metrics_of_an_older_schema_are_refused(layout: Layout) -> None:
    content = read_json(layout.metrics(CELLS[1]))
    del content["schema"]
    write_document(layout.metrics(CELLS[1]), content)
    with pytest.raises(BadInput, match=r"pruned.json was written by an older version \(metrics schema 1, this one "):
        run(CELLS, ReportConfig(), layout)


def test_how_a_model_was_pruned_is_told_and_is_no_warning(layout: Layout) -> None:
    path = layout.details(CELLS[1])
    how = {"start": "wanda", "centred": True, "swaps": 100, "update": True, "bias": True}
    write_document(path, read_json(path) | {"refined": how | {"linears": 21, "biases_changed": 21}})
    run(CELLS, ReportConfig(), layout)
    texts = _texts(layout)
    assert "<p>How it was pruned: the mask starts from Wanda" in texts["report.html"]
    assert "How it was pruned: the mask starts from Wanda" in texts["report.md"]


def test_a_degenerate_model_is_flagged_where_one_looks(layout: Layout) -> None:
    content = read_json(layout.metrics(CELLS[3]))
    content["generation"] |= {"degenerate": True, "reasons": ["100% of the greedy continuations are one token"]}
    write_document(layout.metrics(CELLS[3]), content)
    run(CELLS, ReportConfig(), layout)
    for name in ("report.md", "report.html"):
        text = re.sub(r"<[^>]+>", "", _texts(layout)[name])
        assert "heads 0.25 (degenerate)" in text
        assert "heads 0.25 is degenerate: 100% of the greedy continuations are one token" in text


def test_the_terminal_table_fits_eighty_columns(made: Layout) -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    print_results(made.report, console)
    text = console.export_text()
    assert "[50.0, 70.0]" in text
    assert "heads 0.25" in text
    table = [line for line in text.splitlines() if not line.startswith(("Best", "Report"))]
    assert max(map(len, table)) <= 80


@pytest.mark.parametrize("width", [80, 60, 40])
def test_no_digit_is_cut_on_a_narrow_terminal(width: int, made: Layout) -> None:
    console = Console(width=width, force_terminal=True, no_color=True, file=io.StringIO())
    print_results(made.report, console)
    text = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())  # type: ignore[attr-defined]
    table = [line for line in text.splitlines() if not line.startswith(("Best", "Report", "Not shown"))]
    assert max(map(len, table)) <= width and "…" not in text
    (restored,) = (line for line in table if line.startswith("heads 0.25") and "60.0" in line)
    assert "85.0" in restored and ("[50.0, 70.0]" in restored) == (width > 40)


def test_the_table_says_that_it_is_older_than_the_metrics(layout: Layout) -> None:
    run(CELLS, ReportConfig(), layout)
    assert changed_since(layout) == []
    write_document(layout.metrics(CELLS[1]), read_json(layout.metrics(CELLS[1])) | {"mean": 0.123})
    assert changed_since(layout) == [str(CELLS[1])]
    (layout.root / "params.yaml").touch()
    as_json = CliRunner().invoke(app, ["table", "--json", "--params", str(layout.root / "params.yaml")])
    assert json.loads(as_json.stdout) == read_document(layout.report / "results.json")
    told = CliRunner().invoke(app, ["table", "--params", str(layout.root / "params.yaml")])
    assert f"note: this report is older than the results of {CELLS[1]}: run dvc repro report" in told.output


def test_the_table_says_whose_metrics_are_not_there_any_more(layout: Layout) -> None:
    run(CELLS, ReportConfig(), layout)
    assert gone_since(layout) == []
    layout.metrics(CELLS[0]).unlink()  # as a run that was stopped leaves it
    layout.metrics(CELLS[-1]).unlink()
    assert gone_since(layout) == [str(CELLS[0]), str(CELLS[-1])] and changed_since(layout) == []
    (layout.root / "params.yaml").touch()
    told = CliRunner().invoke(app, ["table", "--params", str(layout.root / "params.yaml")])
    assert f"note: the project has no results of {CELLS[0]}, {CELLS[-1]} any more: run dvc repro" in told.output


def test_with_other_methods_the_report_says_what_to_pick_and_what_merging_leaves(layout: Layout) -> None:
    """Each constraint gets the method that recovers most among those that respect it, by hand."""
    found = {"masked": 0.9, "meanshift": 0.75, "lora": 0.93}
    cells = [Cell("a", "wanda-0.5", recovery=name) for name in found]
    for cell, mean in zip(cells, found.values(), strict=True):
        share = (mean - 0.7) / 0.25
        content = metrics(cell, mean) | {"recovery": cell.recovery, "params_trained": 77}
        content |= {"recovered": {"mean": share, "ci95": [share - 0.1, share + 0.1]}}
        if cell.recovery == "lora":
            merged = {name: content[name] for name in ("tasks", "perplexity", "bits_per_byte")}
            merged |= {"mean": 0.8, "sparsity": 0.0, "recovered": {"mean": 0.4, "ci95": [0.3, 0.5]}}
            merged |= {"params_added": 48}
            content["variants"] = {"merged": merged}
        write_document(layout.metrics(cell), content)
        write_document(layout.details(cell), details(cell, mean))
    write_document(layout.log("recover", cells[0]), {"stage": "recover", "cell": str(cells[0]), "seconds": 12.5})
    run([*CELLS, *cells], ReportConfig(), layout)
    texts = _texts(layout)
    for line in (
        "| lora | 93.0 | 92.0 | [82.0, 102.0] | 3.50 | 64 | 50.00 |",
        "| lora, merged | 80.0 | 40.0 | [30.0, 50.0] | 3.50 | 48 | 0.00 |",
        "| only biases may change | heads 0.25 | 60.0 | [50.0, 70.0] | 3 measured | - | 64 | - |",
        "| weights may change, zeros stay | masked | 80.0 | [70.0, 90.0] | 4 measured | 77 | 64 | 12.5 |",
        "| only an adapter may be added | lora | 92.0 | [82.0, 102.0] | 1 measured | 77 | 64 | - |",
        "| no responses to learn from | meanshift | 20.0 | [10.0, 30.0] | 1 measured | 77 | 64 | - |",
        "| trained | params + | seconds, when last run here |",
    ):
        assert line in texts["report.md"]
    assert "What to pick" in texts["report.html"] and "lora, merged" in texts["report.html"]
    assert "with lora; 95 % interval [82.0, 102.0]; the best of 5 measured on the same items" in texts["report.html"]
    assert "(5 were measured on the same items, so the best is a little optimistic)" in texts["report.md"]
    console = Console(width=100, record=True, file=io.StringIO())
    print_results(layout.report, console)
    assert "lora, merged" in console.export_text()


def test_the_headline_has_no_caution_where_there_was_nothing_to_choose_from(layout: Layout) -> None:
    run(CELLS[:3], ReportConfig(), layout)
    assert "recovered with heads 0.1; 95 % interval [30.0, 50.0]</span>" in _texts(layout)["report.html"]
    assert "optimistic" not in _texts(layout)["report.md"]


def test_a_merged_adapter_of_an_older_document_has_what_pruning_added(layout: Layout) -> None:
    cell = Cell("a", "wanda-0.5", recovery="lora")
    content = metrics(cell, 0.9) | {"recovery": "lora"}
    kept = {name: content[name] for name in ("tasks", "mean", "perplexity", "bits_per_byte", "sparsity")}
    write_document(layout.metrics(cell), content | {"variants": {"merged": kept}, "params_added": 500})
    write_document(layout.metrics(CELLS[1]), read_json(layout.metrics(CELLS[1])) | {"params_added": 48})
    write_document(layout.details(cell), details(cell, 0.9))
    rows = read_results([*CELLS, cell], layout).groups[0].rows
    assert [line["params +"] for line in summary(rows, 1)] == ["64", "48", "64", "64", "500", "48"]


def test_what_is_beyond_doubt_is_picked_before_more_that_is_not() -> None:
    told = {"params_trained": 8, "params_added": 8, "recovery_seconds": 1.0}
    proven = {"kind": "restored", "recovery": None, "what": "heads 0.1", "recovered": 0.294, "ci95": [0.095, 0.833]}
    more = {"kind": "recovered", "recovery": "bias", "what": "bias", "recovered": 0.382, "ci95": [0.0, 1.0]}
    assert picks([proven | told, more | told], 1)[0]["pick"] == "heads 0.1"
    assert picks([proven | told, more | told | {"ci95": [0.2, 1.0]}], 1)[0]["pick"] == "bias"


def test_a_restoration_that_does_not_win_is_said_plainly() -> None:
    row = {"recovered": 0.1, "ci95": [-0.1, 0.3], "head_ratio": 0.1}
    assert verdict([row], 1).startswith("No head ratio restores accuracy beyond doubt")
    proven = {"recovered": 0.294, "ci95": [0.095, 0.833], "head_ratio": 0.1}
    more = {"recovered": 0.382, "ci95": [0.0, 1.0], "head_ratio": 0.25}
    for rows in ([proven, more], [more, proven]):
        said = verdict(rows, 1)
        assert said == (
            "Best head ratio 0.1: 29.4 % [9.5, 83.3] of the lost accuracy was recovered "
            "(2 were measured on the same items, so the best is a little optimistic)."
        )
    assert verdict([row, more], 1).startswith("No head ratio restores accuracy beyond doubt: the best, 0.25,")
    other = {"kind": "recovered", "what": "masked", "recovered": 0.9, "ci95": [0.8, 1.0], "head_ratio": None}
    assert verdict([proven, other], 1).startswith("Best head ratio 0.1:"), "the paper's method, where it was asked for"
    assert "(2 were measured on the same items," in verdict([proven, other], 1), "other methods count as well"
    assert "optimistic" not in verdict([proven], 1)
    assert verdict([other], 1) == "Best method masked: 90.0 % [80.0, 100.0] of the lost accuracy was recovered."
    assert "(2 were measured on" in verdict([other, other | {"what": "bias"}], 1)
    nothing = other | {"recovered": -0.1, "ci95": [-0.3, 0.1]}
    assert verdict([nothing], 1).startswith("No method restores any accuracy: the best, masked, is at -10.0 %")
    assert verdict([{"recovered": None}], 1).startswith("No share of the lost accuracy can be given")
    unbounded = {"recovered": 0.5, "ci95": [None, None], "head_ratio": 0.1}
    assert "unbounded" in verdict([unbounded], 1)


@pytest.mark.parametrize("number", [0, 1, 3], ids=["dense", "pruned", "restored"])
@pytest.mark.parametrize("part", SWAPS)
def test_cells_measured_in_different_ways_are_never_shown_side_by_side(layout: Layout, part: str, number: int) -> None:
    how, cell = swapped(FINGERPRINT, part), CELLS[number]
    write_document(layout.metrics(cell), read_json(layout.metrics(cell)) | {"measured": how.digest})
    write_table(layout.samples(cell), [], SAMPLES, {MEASURED: how.as_text()})
    with pytest.raises(BadInput) as caught:
        read_results(CELLS, layout)
    sentence, differing = str(caught.value), [cell]
    assert "cannot be compared, they were measured differently in" in sentence
    assert SWAPS[part] in sentence
    assert sentence.endswith(f"--single-item {' '.join(each.evaluation for each in differing)}`")


def test_models_of_different_fingerprints_stand_in_one_report(layout: Layout) -> None:
    others, how = [Cell("b"), Cell("b", "wanda-0.5")], swapped(FINGERPRINT, "tokenizer")
    for other in others:
        write_document(layout.metrics(other), metrics(other, 0.9) | {"measured": how.digest})
    assert len(read_results([*CELLS, *others], layout).rows) == 6


def test_tasks_that_models_were_asked_in_different_ways_are_told_apart(layout: Layout) -> None:
    others, how = [Cell("b"), Cell("b", "wanda-0.5")], swapped(FINGERPRINT, "metric")
    for other in others:
        content = metrics(other, 0.9)
        arc = content["tasks"]["world_arc"] | {"metric": "acc_norm", "shots": 5, "n": 1234}
        write_document(
            layout.metrics(other),
            content | {"measured": how.digest, "tasks": content["tasks"] | {"world_arc": arc}},
        )
    run([*CELLS, *others], ReportConfig(), layout)
    text = _texts(layout)["report.md"]
    for line in (
        "| task | metric | in the mean | version | shots | items | model |",
        "| world_arc | acc | yes | 1.0 | 0 | 400 | a |\n| world_arc | acc_norm | yes | 1.0 | 5 | 1,234 | b |",
        "| world_rte | acc | yes | 1.0 | 0 | 400 | a, b |",
    ):
        assert line in text
    page = _texts(layout)["report.html"]
    assert "<td>acc_norm</td><td>yes</td><td>1.0</td><td>5</td><td>1,234</td><td>b</td>" in page
    alone = task_facts(read_results(CELLS, layout).rows)
    assert list(alone[0]) == ["task", "metric", "in the mean", "version", "shots", "items"] and len(alone) == 2


def test_rivals_are_in_the_tables_of_what_was_measured_of_them(layout: Layout) -> None:
    path = layout.details(CELLS[0])
    content = metrics(CELLS[0], 0.9)
    rival = {name: content[name] for name in ("tasks", "mean", "perplexity", "bits_per_byte", "file_bytes")}
    rival |= {"bits_per_byte": 0.987, "perplexity": content["perplexity"] | {"value": 3.75}, "seconds": 1.0}
    write_document(path, read_json(path) | {"rivals": {"int8": rival}})
    run(CELLS, ReportConfig(), layout)
    text = _texts(layout)["report.md"]
    assert "| dense, int8 | 90.0 | 90.0 |\n| pruned | 70.0 | 70.0 |" in text, "tasks"
    assert "| dense, int8 | 3.75 | - | - | 0.987 | - | - |\n| pruned | 3.50 | 4.25 | 7.50 | 0.900 | - | - |" in text
    page = _texts(layout)["report.html"]
    assert page.count('<th scope="row">dense, int8</th>') == 4, "summary, tasks, perplexity, cost"
    console = Console(width=200, record=True, file=io.StringIO())
    print_results(layout.report, console)
    assert console.export_text().count("dense, int8 ") == 2, "summary and tasks"


@pytest.mark.parametrize(
    ("recovered", "ci95", "said"),
    [
        (-0.235, [-0.9, 0.3], "heads 0.25: nothing was recovered: -23.5 % [-90.0, 30.0]."),
        (0.0, [0.0, 0.0], "heads 0.25: nothing was recovered: 0.0 % [0.0, 0.0]."),
        (0.1, [-0.2, 0.4], "heads 0.25: nothing was recovered beyond doubt: 10.0 % [-20.0, 40.0]."),
        (0.1, [None, None], "heads 0.25: nothing was recovered beyond doubt: 10.0 % (its interval is unbounded)."),
        (
            *(0.1, None),
            "heads 0.25: nothing was recovered beyond doubt: 10.0 % (without an interval: a task has a single item).",
        ),
    ],
)
def test_where_nothing_was_won_back_every_form_says_so(
    layout: Layout, recovered: float, ci95: list[float | None] | None, said: str
) -> None:
    content = read_json(layout.metrics(CELLS[3]))
    content["recovered"] |= {"mean": recovered, "ci95": ci95}
    write_document(layout.metrics(CELLS[3]), content)
    cells = [cell for cell in CELLS if cell.head_ratio != "0.1"]
    run(cells, ReportConfig(), layout)
    console = Console(width=200, record=True, file=io.StringIO())
    print_results(layout.report, console)
    page = re.sub(r"<[^>]+>", "", _texts(layout)["report.html"])
    for text in (_texts(layout)["report.md"], page, console.export_text()):
        assert said in text
        assert "of the lost accuracy was recovered" not in text
    assert "-lead" not in page
    run(CELLS, ReportConfig(), layout)
    assert "heads 0.1: nothing" not in _texts(layout)["report.md"]


def test_a_task_that_is_no_accuracy_is_listed_and_not_averaged(layout: Layout) -> None:
    other = {"metric": "word_perplexity", "value": 1234.5, "averaged": False}
    for cell in CELLS:
        content = read_json(layout.metrics(cell))
        content["tasks"]["world_rte"] |= other
        write_document(layout.metrics(cell), content)
    run(CELLS, ReportConfig(), layout)
    console = Console(width=100, record=True, file=io.StringIO())
    print_results(layout.report, console)
    for text in (_texts(layout)["report.md"], _texts(layout)["report.html"], console.export_text()):
        assert "1,234.50" in text
        assert "because its metric is not an accuracy: world_rte (word_perplexity)." in text
    assert "world_rte" not in (layout.report / "plots" / "tasks.csv").read_text()


def test_a_task_without_a_value_or_an_error_is_shown_as_a_dash(layout: Layout) -> None:
    for cell in CELLS:
        content = read_json(layout.metrics(cell))
        content["tasks"]["world_rte"] |= {"stderr": None}
        content |= {"perplexity": {"corpus": "heldout", "tokens": 10, "value": None}, "mean": None}
        write_document(layout.metrics(cell), content)
    run(CELLS, ReportConfig(), layout)
    assert "| dense | - | - | - | - | 64 | 50.00 |" in _texts(layout)["report.md"]


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, None, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), None, pytest.approx(0.06)]
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_numbers_as_text() -> None:
    assert [p_text(p) for p in (None, 0.0004, 0.0123)] == ["-", "< 0.001", "0.012"]
    assert [size_text(size) for size in (None, 999, 714_912, 13_476_000_000)] == ["-", "999 B", "714.9 kB", "13.48 GB"]
    assert [size_text(size) for size in (999.6, 999_960, 999_940)] == ["1.0 kB", "1.0 MB", "999.9 kB"]
    assert (percent(-0.0004, 1), percent(-0.0006, 1), number(-0.00001, 4)) == ("0.0", "-0.1", "0.0000")


def test_a_share_above_one_is_inside_the_figure_and_names_are_no_formulas(layout: Layout) -> None:
    """Also of another method, and of a ratio without bounds."""
    results = read_results(CELLS, layout)
    group = results.groups[0]
    other = group.rows[-1] | {"kind": "recovered", "what": "a $5 or $9", "recovered": 1.3, "ci95": None}
    drawn = recovered_figure(replace(group, rows=[*group.rows, other]))
    assert drawn is not None
    assert drawn(LIGHT).axes[0].get_ylim()[1] > 130
    assert b"a $5 or $9" in static_files(drawn, "f")["f.svg"]


def test_what_became_of_the_rows_of_a_models_data_is_a_table(layout: Layout) -> None:
    assert "skipped" not in _made_with(layout, {})["report.md"]
    rows = {"read": 1234, "used": 1200, "shortened": 2, "skipped": {"null response": {"count": 34, "first": 7}}}
    texts = _made_with(layout, {"instructions": {"source": "p.jsonl", "rows": rows}, "tokenizer": {"source": "m"}})
    line = "| a, instructions | p.jsonl | 1,234 | 1,200 | 2 | 34 null response (7) |"
    assert line in texts["report.md"]
    assert "34 null response (7)" in texts["report.html"] and '"null response"' in texts["results.json"]


def _made_with(layout: Layout, sources: dict) -> dict[str, str]:
    write_document(layout.sources(Cell("a")), sources)
    run(CELLS, ReportConfig(), layout)
    return _texts(layout)
