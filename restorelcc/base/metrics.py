"""Metrics documents: one schema, checked when they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from restorelcc.base.cell import Cell, evaluated_again
from restorelcc.base.documents import read_json
from restorelcc.base.errors import BadInput
from restorelcc.base.fingerprint import Fingerprint, check_comparable
from restorelcc.base.grid import AUTO
from restorelcc.base.layout import Layout
from restorelcc.base.sample_table import MEASURED
from restorelcc.base.tables import read_metadata

# 1 had no items' digests, one perplexity and no generation check; 2 did not say how it was measured.
SCHEMA = 3
_NEEDED = ("model", "pruning", "head_ratio", "measured", "tasks", "mean", "perplexity", "params_total", "sparsity")


def read_metrics(path: Path) -> dict[str, Any]:
    """A metrics document. Raises BadInput for one of another schema, or for a file that is none."""
    content = read_json(path)
    found = content.get("schema", 1) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(found, int) or "tasks" not in content:
        raise BadInput(f"{path} holds no metrics: give a file that an evaluate stage wrote (data/metrics/...)")
    if found != SCHEMA:
        age = "an older" if found < SCHEMA else "a newer"
        raise BadInput(
            f"{path} was written by {age} version (metrics schema {found}, this one reads {SCHEMA}): "
            + ("it cannot be compared, run dvc repro to evaluate again" if found < SCHEMA else "update restorelcc")
        )
    if missing := [name for name in _NEEDED if name not in content]:
        raise BadInput(f"{path} has no {', '.join(missing)}: the file is damaged, delete it and run dvc repro")
    return content


def cell_of(metrics: dict[str, Any]) -> Cell:
    """The cell that a metrics document is of."""
    ratio = metrics["head_ratio"]
    label = None if ratio is None else AUTO if metrics.get("head_ratio_auto") else f"{ratio:g}"
    return Cell(metrics["model"], metrics["pruning"], label, metrics.get("baseline"))


def read_fingerprint(samples: Path, cell: Cell, digest: str | None = None) -> Fingerprint:
    """How the samples of a cell were measured. digest: of the metrics beside them, which must be of the same run.

    Raises BadInput, with the command that measures again, for samples that do not say it, or are of another run.
    """
    if not samples.is_file():
        raise BadInput(
            f"{samples} is missing: what a result can be compared with stands there (dvc checkout or dvc pull "
            "brings it back)"
        )
    again = evaluated_again(cell)
    found = Fingerprint.from_text(read_metadata(samples).get(MEASURED), samples, again)
    if digest is not None and found.digest != digest:
        raise BadInput(f"{samples} is of another run than the metrics beside it: run `{again}`")
    return found


def check_measured_alike(base: Cell, others: list[Cell], measured: dict[Cell, str], layout: Layout) -> None:
    """Raises BadInput, naming the part that differs and the evaluations that are not as that of `base`, unless all were
    measured in one way; of a dense model unlike all others, that agree, its own alone. measured: digests of the
    fingerprints, as the metrics documents have them."""
    differing = [cell for cell in others if measured[cell] != measured[base]]
    if differing:
        rest = {measured[cell] for cell in differing}
        alone = base.kind == "dense" and len(rest) == 1 and len(differing) > 1 and {*others} <= {base, *differing}
        again, cells = evaluated_again(*([base] if alone else differing)), (base, differing[0])
        found = [read_fingerprint(layout.samples(cell), cell, measured[cell]) for cell in cells]
        check_comparable(f"{base} ({base.kind})", found[0], f"{differing[0]} ({differing[0].kind})", found[1], again)
