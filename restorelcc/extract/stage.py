"""Stage `extract`: the components of every head that pruning lost."""

from __future__ import annotations

from pathlib import Path

import torch

from restorelcc.core.cell import Cell
from restorelcc.core.errors import BadInput
from restorelcc.core.heads import HeadLayout
from restorelcc.core.model_entry import ModelEntry
from restorelcc.core.progress import progress
from restorelcc.core.runtime import prepare
from restorelcc.extract.config import ExtractConfig
from restorelcc.extract.decompose import decompose
from restorelcc.io.activations import QUESTION, read_layer, read_layout
from restorelcc.io.digest import expect_digest
from restorelcc.io.layout import Layout
from restorelcc.io.scratch import published
from restorelcc.io.tensors import write_tensors


def run(cell: Cell, config: ExtractConfig, model: ModelEntry, layout: Layout) -> None:
    """Write <model>/<pruning>/components.safetensors: directions [L,H,D,D], singular_values and loadings [L,H,D]."""
    prepare(seed=0, threads=model.threads)
    dense, pruned = layout.dense_activations(cell), layout.pruned_activations(cell)
    heads, metadata = _common_layout(dense, pruned)
    parts = []
    for layer in progress(range(heads.layers), "extract", "layers"):
        lost_NHD = read_layer(dense, layer, QUESTION, heads) - read_layer(pruned, layer, QUESTION, heads)
        parts.append(decompose(lost_NHD, config.solver))
    tensors = {
        "directions": torch.stack([part.directions_HDD for part in parts]),
        "singular_values": torch.stack([part.singular_values_HD for part in parts]),
        "loadings": torch.stack([part.loadings_HD for part in parts]),
    }
    with published(layout, layout.components(cell)) as (path,):
        write_tensors(path, tensors, metadata | {"samples": str(lost_NHD.shape[0])})


def _common_layout(dense: Path, pruned: Path) -> tuple[HeadLayout, dict[str, str]]:
    heads, of_dense = read_layout(dense)
    others, of_pruned = read_layout(pruned)
    expect_digest("dense and pruned activations were captured on different text", of_dense["text"], of_pruned["text"])
    if heads != others:
        raise BadInput(f"dense and pruned activations come from models of different shape, {heads} and {others}")
    shape = {name: of_dense[name] for name in ("model", "layers", "heads", "head_dim", "text")}
    return heads, shape | {"dense": of_dense["checkpoint"], "pruned": of_pruned["checkpoint"]}
