"""Where the numbers come from, and how to reproduce them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from restorelcc.base.cell import Cell
from restorelcc.base.documents import Form, checked_form, read_json
from restorelcc.base.layout import Layout
from restorelcc.base.tables import OWN_WORDS
from restorelcc.stages.report.results import Results
from restorelcc.stages.report.tables import Table

_ORDER = (
    *("corpus", "dense", "capture_dense", "prune", "capture_pruned", "extract", "probe", "compensate", "recover"),
    "speed",
)
NOTES = (
    "Accuracy by lm-eval, zero-shot unless the tasks below have shots, in percent; error bars and intervals are of "
    "95 %.",
    "All rows of a model were measured in the same way: same items, prompts, metrics, shots, dtype, "
    "lm-eval and tokenizer.",
    "Recovered = (restored - pruned) / (dense - pruned) of mean accuracy, with a paired bootstrap interval over the "
    "test items, drawn within each task.",
    "McNemar's test (mid-p) is over the items that only one of two models answered; intervals and p are of the test "
    "items and say nothing about other training seeds.",
    "Latency is the median of forward passes of one batch; restored / pruned is measured in turn in one process, on "
    "the same weights with and without the biases that restoring adds.",
)


def packages(results: Results) -> Table:
    """Versions that the numbers were measured with; several where cells differ."""
    found: dict[str, set[str]] = {}
    for row in results.rows:
        for name, version in (row["versions"] or {}).items():
            found.setdefault(name, set()).add(version)
    return [{"package": name, "version": ", ".join(sorted(versions))} for name, versions in found.items()]


def data_rows(results: Results) -> Table:
    """How many rows of the models' data were used, shortened or skipped."""
    return [
        {"data of": f"{model}, {role}", "source": _source(origin), "read": f"{origin['rows']['read']:,}"}
        | {name: f"{origin['rows'][name]:,}" for name in ("used", "shortened")}
        | {"skipped (first row)": _skipped(origin["rows"]["skipped"])}
        for model, roles in results.data.items()
        for role, origin in roles.items()
        if "rows" in origin
    ]


def _source(origin: dict[str, Any]) -> str:
    source = str(origin["source"])
    return f"the model itself, asked what is in {source}" if OWN_WORDS in origin else source


def _skipped(reasons: dict[str, dict[str, int]]) -> str:
    return "; ".join(f"{each['count']:,} {reason} ({each['first']})" for reason, each in reasons.items()) or "-"


def artifacts(results: Results) -> Table:
    """SHA-256 of what every row was measured on."""
    return [
        {"of": row["cell"], "artifact": name, "SHA-256": digest[:16]}
        for row in results.rows
        for name, digest in (row["details"].get("digests") or {}).items()
    ]


class _Log(Form):
    stage: str
    cell: str
    seconds: float


def _log(path: Path) -> _Log:
    return checked_form(read_json(path), _Log, f"{path} is not the log of a stage", "delete it")


def stage_seconds(cells: list[Cell], layout: Layout) -> Table:
    """Seconds of each stage for each cell, where this machine ran it."""
    logs = [_log(path) for path in sorted(layout.logs.glob("*.json"))] if layout.logs.is_dir() else []
    names = {str(cell) for cell in cells}
    stages = list(dict.fromkeys(_ORDER + tuple(sorted(log.stage for log in logs))))
    rows = []
    for stage in stages:
        own = [log.seconds for log in logs if log.stage == stage and log.cell in names]
        if own:
            rows.append(
                {"stage": stage, "cells": str(len(own)), "seconds each": f"{sum(own) / len(own):.1f}"}
                | {"seconds in all": f"{sum(own):.1f}"}
            )
    return rows


def commands(results: Results, settings: tuple[str, ...] = ()) -> list[str]:
    """Shell lines: the whole grid, one cell again, and a comparison of two.

    settings: `section.key=value` over params.yaml, which the results were computed with.
    """
    models = dict.fromkeys(group.model for group in results.groups)
    given = [f"--set {shlex.quote(each)}" for each in settings if not each.startswith("grid.model=")]
    lines = [" ".join(("restorelcc run", *(f"--model {model}" for model in models), *given)), "restorelcc table"]
    for group in results.groups[:1]:
        for row in group.of_kind("restored")[:1]:
            ratio = row["cell"].rpartition(" ")[2]  # as the grid writes it, which may be `auto`
            cell = f"--model {group.model} --pruning {group.pruning} --head-ratio {ratio}"
            base = f"data/metrics/{group.model}/{group.pruning}"
            lines += [" ".join(("restorelcc evaluate_restored", cell, *given))]
            lines += [f"restorelcc compare {base}/pruned.json {base}/heads-{ratio}.json"]
    return lines
