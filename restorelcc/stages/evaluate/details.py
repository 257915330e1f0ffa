"""Further data for the report, copied from the artifacts of a cell, so that they cannot be another cell's.

Letters: L layers, H heads, D head dim.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from restorelcc.base.cell import Cell
from restorelcc.base.documents import read_document
from restorelcc.base.layout import Layout
from restorelcc.base.tables import HEADS, read_metadata, read_table
from restorelcc.models.tensors import read_tensors


def pruning_details(pruned: Path) -> dict[str, Any]:
    """Sparsity and reconstruction error of every layer, and what the pruning was calibrated on."""
    sparsity = read_document(pruned / "sparsity.json")
    found = {key: sparsity.get(key) for key in ("layers", "calibration", "refined", "allocation")}
    if found["refined"]:
        counts = {"linears": len(sparsity["tensors"]), "biases_changed": sparsity.get("biases_changed", 0)}
        found["refined"] = found["refined"] | counts
    return found


def added_by_pruning(pruned: Path) -> int:
    """How many parameters the pruned model has more than the dense one: the biases of `refined`."""
    return int(read_document(pruned / "sparsity.json").get("parameters_added", 0))


def head_details(cell: Cell, layout: Layout) -> dict[str, Any]:
    """Score and rank of every head, those chosen, the spectrum of what each layer lost, and how training went."""
    table = sorted(read_table(layout.heads(cell), HEADS), key=lambda row: (row["layer"], row["head"]))
    training = read_document(layout.training(cell))
    layers = 1 + max(row["layer"] for row in table)
    return {
        "heads": {
            "score": read_metadata(layout.heads(cell)).get("score"),
            "scores": _by_layer(table, "score", layers),
            "ranks": _by_layer(table, "rank", layers),
            "chosen": training.get("heads", []),
        },
        "spectra": lost_energy(layout.components(cell)),
        "training": training.get("runs", []),
        "no_change": training.get("chosen", {}).get("candidate") == "no change",
    }


def _by_layer(table: list[dict[str, Any]], column: str, layers: int) -> list[list[Any]]:
    return [[row[column] for row in table if row["layer"] == layer] for layer in range(layers)]


def lost_energy(components: Path) -> list[list[float]]:
    """Per layer, the share of its lost energy in each component: mean over the heads that lost any of
    sigma_i^2 / sum_j sigma_j^2."""
    values_LHD = read_tensors(components, ("singular_values",))[0]["singular_values"].double().square()
    total_LH1 = values_LHD.sum(-1, keepdim=True)
    shares_LHD = values_LHD / total_LH1.clamp_min(1e-300)
    mean_LD = shares_LHD.sum(dim=1) / (total_LH1 > 0).sum(dim=1).clamp_min(1)
    return [[float(share) for share in layer_D] for layer_D in mean_LD]
