"""The pages of the study, from its cells: docs/results/recovery.md and ablation.md."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev

from benchmarks.study_cells import PAPER, Method, StudyCell
from restorelcc.io.documents import read_json

# Student's t at 97.5 % by degrees of freedom, for intervals over a few seeds.
_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
_HOW = """Recovered: the share of what pruning lost that came back, of mean task accuracy for the embedded model and
of the held-out log-likelihood for stories260K. The interval is Student's 95 % over the seeds; one seed has none. All
trained methods see the same pairs equally often and choose among two learning rates on the validation pairs. Seconds
are of one thread of a busy machine. `make study` goes on with the study and writes this page.
"""


def recovered(cell: dict) -> float:
    """The recovered share of a cell: of accuracy, or without tasks of log-likelihood."""
    if cell["means"][0] is not None:
        dense, pruned, restored = cell["means"]
        return (restored - pruned) / (dense - pruned)
    dense, pruned, restored = map(math.log, cell["perplexities"])
    return (pruned - restored) / (pruned - dense)


def interval(values: Sequence[float]) -> str:
    """Mean and Student's 95 % interval over seeds, in percent."""
    if len(values) < 2:
        return f"{100 * values[0]:.1f}"
    half = _T[min(len(values) - 1, 9)] * stdev(values) / math.sqrt(len(values))
    return f"{100 * mean(values):.1f} ± {100 * half:.1f}"


def write_pages(cells: Path, results: Path, planned: Iterable[StudyCell]) -> None:
    """Write both pages from what is measured, and say what is not."""
    results.mkdir(parents=True, exist_ok=True)
    known = list(planned)
    found = {path.stem: read_json(path) for path in sorted(cells.glob("*.json"))}
    for table, title in (("recovery", "Recovery methods, measured"), ("ablation", "Ablations of the method, measured")):
        lines = [f"# {title}", "", *_HOW.splitlines(), ""]
        for model, pruning in dict.fromkeys((cell.subject.model, cell.pruning) for cell in known):
            own = [c for c in known if (c.subject.model, c.pruning) == (model, pruning)]
            methods = dict.fromkeys(c.method for c in own if c.method.table == table)
            if table == "ablation" and methods:
                methods = {PAPER: None} | methods
            lines += _section(model, pruning, list(methods), own, found) if methods else []
        (results / f"{table}.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _section(model: str, pruning: str, methods: list[Method], own: list[StudyCell], found: dict) -> list[str]:
    rows, missing, first = [], [], None
    for method in methods:
        cells = [c for c in own if c.method == method]
        measured = [found[c.name] for c in cells if c.name in found]
        missing += [f"{method.name} (seed {c.seed})" for c in cells if c.name not in found]
        if measured:
            first = first or measured[0]
            rows.append((mean(map(recovered, measured)), _row(method, measured)))
    lines = [f"## {model}, {pruning}", ""]
    if rows and first:
        lines += [_lost(first), ""]
        lines += [
            "| method | seeds | recovered % | trained | added | zeros kept | seconds |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [row for _, row in sorted(rows, key=lambda row: -row[0])]
        lines += [""]
    if missing:
        lines += [f"Not measured yet: {', '.join(missing)}.", ""]
    return lines


def _lost(cell: dict) -> str:
    if cell["means"][0] is not None:
        dense, pruned = (100 * value for value in cell["means"][:2])
        return f"Mean accuracy of seed {cell['seed']}: dense {dense:.1f} %, pruned {pruned:.1f} %."
    dense, pruned, _ = cell["perplexities"]
    return f"Held-out perplexity: dense {dense:.2f}, pruned {pruned:.2f}."


def _row(method: Method, cells: list[dict]) -> str:
    zeros = {True: "yes", False: "**no**", None: "beside them"}[cells[0]["zeros_kept"]]
    values = [recovered(cell) for cell in cells]
    numbers = [f"{cells[0].get(name) or 0:,}" for name in ("params_trained", "params_added")]
    seconds = f"{mean(cell['seconds'] for cell in cells):.0f}"
    return f"| {method.title} | {len(cells)} | {interval(values)} | {' | '.join(numbers)} | {zeros} | {seconds} |"
