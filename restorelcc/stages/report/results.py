"""What the report is made of: rows of every grid cell that was evaluated, in groups, and the cells that were not."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restorelcc.base.cell import Cell
from restorelcc.base.documents import cell_of, parse_json, read_document, read_json, read_metrics
from restorelcc.base.errors import BadInput
from restorelcc.base.fingerprint import check_measured_alike, read_fingerprint
from restorelcc.base.layout import Layout
from restorelcc.base.progress import notice
from restorelcc.base.tables import SAMPLES, TEXT_SCORES, read_table


def holm(p_values: list[float | None]) -> list[float | None]:
    """p adjusted so that, with no real difference anywhere, one below 0.05 appears in 5 % of grids. Holm 1979.

    max over j <= i of (m - j) p_(j), for the m values in ascending order; None stays None and does not count.
    """
    order = sorted((p, position) for position, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, position) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[position] = largest
    return adjusted


Row = dict[str, Any]


@dataclass
class Group:
    """One model and one pruning: rows of dense, pruned, every head ratio and every recovery that exists."""

    model: str
    pruning: str
    rows: list[Row]
    speeds: list[dict[str, Any]] = field(default_factory=list)  # documents of the stage `speed`, in the grid's order

    @property
    def recovering(self) -> list[Row]:
        """Rows of models that something was done to after pruning."""
        return [row for row in self.rows if row["kind"] in ("restored", "recovered")]

    def of_kind(self, kind: str) -> list[Row]:
        return [row for row in self.rows if row["kind"] == kind]

    def detail(self, name: str) -> Any:
        """The first of the group's rows that has this detail: the same for all of them (head scores, spectra)."""
        found = [row["details"][name] for row in self.rows if row["details"].get(name)]
        return found[0] if found else None


@dataclass
class Results:
    """Everything that the report shows."""

    groups: list[Group] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # of the grid, by the path of their metrics
    # Of each model: where its data came from, and what became of every row (docs/data.md); empty for the embedded one.
    data: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """Every row once; the dense one is part of each of its model's groups."""
        seen: dict[str, Row] = {}
        for group in self.groups:
            for row in group.rows:
                seen.setdefault(row["cell"], row)
        return list(seen.values())


def read_results(cells: list[Cell], layout: Layout) -> Results:
    """Rows of exactly these cells; other metrics in the folder are ignored.

    Raises BadInput when none was evaluated, for results per item that were changed since or are of another run, and,
    naming what differs, for cells of one model that were measured in different ways: side by side they would be
    compared.
    """
    results, rows, measured = Results(), {}, {}
    for cell in cells:
        if layout.metrics(cell).is_file():
            metrics = read_metrics(layout.metrics(cell))
            if (found := cell_of(metrics, layout.metrics(cell))) != cell:
                raise BadInput(f"{layout.metrics(cell)} is of {found}, not of {cell}: run `dvc repro`")
            _check_items(cell, metrics, layout)
            measured[cell] = metrics["measured"]
            rows[cell] = result_row(cell, metrics, _read(layout.details(cell)))
            rows[cell]["recovery_seconds"] = _recovery_seconds(cell, layout)
        else:
            results.missing.append(str(layout.metrics(cell).relative_to(layout.root)))
    if not rows:
        raise BadInput(
            f"none of the {len(cells)} grid cells has been evaluated ({results.missing[0]} and so on): run dvc repro"
        )
    for model in dict.fromkeys(cell.model for cell in rows):
        own_cells = [cell for cell in rows if cell.model == model]
        base = next((cell for cell in own_cells if cell.kind == "dense"), own_cells[0])
        check_measured_alike(base, own_cells, measured, layout)
    results.data = {model: _read(layout.sources(Cell(model))) for model in dict.fromkeys(cell.model for cell in rows)}
    for model, pruning in dict.fromkeys((cell.model, cell.pruning) for cell in cells if cell.pruning is not None):
        own = [
            row for cell, row in rows.items() if cell == Cell(model) or (cell.model, cell.pruning) == (model, pruning)
        ]
        if own:
            restored = [cell for cell in cells if (cell.model, cell.pruning) == (model, pruning) and cell.head_ratio]
            speeds = [document for cell in restored for document in _speeds(cell, rows.get(cell), layout)]
            results.groups.append(Group(model, pruning, own, speeds))
    tested = [row for row in results.rows if row["p"] is not None and row["kind"] in ("restored", "recovered")]
    for row, adjusted in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = adjusted
    return results


def _speeds(cell: Cell, row: Row | None, layout: Layout) -> list[dict[str, Any]]:
    """What the stage `speed` measured for a cell, if it did, and on the very model that the row is of: the file of a
    stage that was run by hand, or by an earlier grid, stays. Raises BadInput for the file of another cell."""
    path = layout.speed(cell)
    if not path.is_file():
        return []
    document = read_document(path)
    names = ("model", "pruning", "head_ratio")
    if any(document.get(name) != getattr(cell, name) for name in names):
        raise BadInput(f"{path} is not of {cell}: run `dvc repro`")
    if row is None:  # it is told as not evaluated
        return []
    digests = row["details"].get("digests") or {}
    timed, parents = (digests.get("model"), digests.get("compensation")), document.get("parents") or {}
    if timed == (parents.get("pruned"), parents.get("compensation")):
        return [document]
    again = f"restorelcc speed --model {cell.model} --pruning {cell.pruning} --head-ratio {cell.head_ratio}"
    notice(
        "report",
        f"{path.relative_to(layout.root)} was timed on another model than the one evaluated, and is left out: "
        f"run `{again}`, or name the ratio in grid.speed",
    )
    return []


def _check_items(cell: Cell, metrics: dict[str, Any], layout: Layout) -> None:
    """Raises BadInput where the results per item or text beside the metrics are not what the stage wrote with them."""
    for path, schema in ((layout.samples(cell), SAMPLES), (layout.text_scores(cell), TEXT_SCORES)):
        if path.is_file():
            read_fingerprint(path, cell, metrics["measured"])
            read_table(path, schema)


def changed_since(layout: Layout) -> list[str]:
    """The cells of the report whose metrics are no longer those that it shows."""
    shown = {row["cell"]: row for row in read_document(layout.report / "results.json")["rows"]}
    found = []
    for path in sorted((layout.data / "metrics").rglob("*.json")):
        content = read_json(path)
        if path.name.endswith(".details.json") or not {"schema", "tasks", "measured"} <= content.keys():
            continue
        metrics = read_metrics(path)
        cell = cell_of(metrics, path)
        row = _as_written(result_row(cell, metrics, _read(layout.details(cell))))
        own = shown.get(str(cell))
        if own is not None and any(own.get(key) != value for key, value in row.items() if key != "p_holm"):
            found.append(str(cell))
    return found


def gone_since(layout: Layout) -> list[str]:
    """The cells of the report whose metrics are not there: DVC removes them when it begins to compute them again."""
    rows = read_document(layout.report / "results.json")["rows"]
    return [row["cell"] for row in rows if not layout.metrics(_cell_of(row)).is_file()]


def _cell_of(row: Row) -> Cell:
    """The cell as its files are named: of `auto` the row's own ratio is the chosen one."""
    model, *rest = row["cell"].split()
    pruning, last = (*rest, None, None)[:2]
    return Cell(model, pruning, recovery=last) if row["kind"] == "recovered" else Cell(model, pruning, last)


def _read(path: Path) -> dict[str, Any]:
    return read_document(path) if path.is_file() else {}


def _as_written(row: Row) -> Row:
    return parse_json(json.dumps(row), "a row of the report")


def _recovery_seconds(cell: Cell, layout: Layout) -> float | None:
    """What the stage that recovers took when it last ran on this machine, which DVC may have brought an earlier result
    back to since; None where it never ran here."""
    stage = "recover" if cell.recovery is not None else "compensate"
    log = layout.log(stage, cell)
    return read_json(log).get("seconds") if log.is_file() else None


def result_row(cell: Cell, metrics: dict[str, Any], details: dict[str, Any]) -> Row:
    """One row of the report: names, accuracy, recovered share with interval, perplexities, text, cost."""
    kind, label = _kind(metrics)
    recovered, versus = metrics.get("recovered") or {}, (details.get("pooled") or {}).get("pruned") or {}
    names = ("model", "pruning", "head_ratio", "mean", "params_added", "params_total", "sparsity")
    optional = ("params_nonzero", "params_trained", "file_bytes", "bits_per_byte", "generation")
    return {
        "cell": str(cell),
        "kind": kind,
        "what": label,
        **{name: metrics[name] for name in names},
        **{name: metrics.get(name) for name in optional},
        "seconds": (details.get("seconds") or {}).get("total"),
        "versions": details.get("versions"),
        "recovery": metrics.get("recovery"),
        "variants": metrics.get("variants"),
        "tasks": metrics["tasks"],
        "items": sum(task["n"] for task in metrics["tasks"].values()),
        "recovered": recovered.get("mean"),
        "ci95": recovered.get("ci95"),
        "seeds": recovered.get("seeds"),
        "reason": recovered.get("reason"),
        "difference": versus.get("difference"),
        "difference_ci95": versus.get("ci95"),
        "p": versus.get("p"),
        "p_holm": None,
        "perplexity": metrics["perplexity"]["value"],
        "token_perplexity": metrics.get("token_perplexity"),
        "word_perplexity": metrics.get("word_perplexity"),
        "details": details,
    }


def _kind(metrics: dict[str, Any]) -> tuple[str, str]:
    if metrics["pruning"] is None:
        return "dense", "dense"
    if metrics.get("recovery") is not None:
        return "recovered", str(metrics["recovery"])
    if metrics["head_ratio"] is None:
        return "pruned", "pruned"
    chosen = f"{metrics['head_ratio']:g}"
    return "restored", f"heads auto ({chosen})" if metrics.get("head_ratio_auto") else f"heads {chosen}"


def rivals_of(row: Row) -> list[Row]:
    """The row of a dense model once for every way of rounding it that was measured."""
    return [
        row
        | {"what": f"{row['what']}, {name}", "mean": found["mean"], "perplexity": found["perplexity"]["value"]}
        | {"file_bytes": found["file_bytes"], "seconds": found["seconds"], "params_nonzero": None, "generation": None}
        | {"tasks": found["tasks"], "bits_per_byte": found["bits_per_byte"], "word_perplexity": None}
        | {"token_perplexity": (row["token_perplexity"] or {}) | {"value": None}, "details": {}}
        for name, found in (row["details"].get("rivals") or {}).items()
    ]
