"""Stage `extract`: the components of every head that pruning lost."""

from __future__ import annotations

from pathlib import Path

import torch

from restorelcc.activations.store import QUESTION, check_one_shape, read_layer, read_layout
from restorelcc.base.cell import Cell
from restorelcc.base.digest import expect_digest
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import ModelEntry
from restorelcc.base.progress import notice, progress
from restorelcc.base.publish import published
from restorelcc.models.heads import HeadLayout
from restorelcc.models.runtime import prepare
from restorelcc.models.tensors import write_tensors
from restorelcc.stages.extract import ExtractConfig
from restorelcc.stages.extract.decompose import decompose


def run(cell: Cell, config: ExtractConfig, model: ModelEntry, layout: Layout) -> None:
    """Write <model>/<pruning>/components.safetensors: directions [L,H,D,D], singular_values and loadings [L,H,D]."""
    prepare(seed=0, threads=model.threads)
    dense, pruned = layout.dense_activations(cell), layout.pruned_activations(cell)
    heads, metadata = _common_layout(cell, dense, pruned)
    parts = []
    for layer in progress(range(heads.layers), "extract", "layers"):
        dense_NHD, pruned_NHD = (read_layer(folder, layer, QUESTION, heads) for folder in (dense, pruned))
        if dense_NHD.shape != pruned_NHD.shape or not len(dense_NHD):
            raise BadInput(
                f"layer {layer} has {len(dense_NHD)} dense and {len(pruned_NHD)} pruned samples: run `dvc repro`"
            )
        lost_NHD = dense_NHD - pruned_NHD
        if not lost_NHD.isfinite().all():
            raise StageFailed(f"extract: activations of layer {layer} hold NaN or infinity: capture them again")
        parts.append(decompose(lost_NHD, config.solver))
    samples = lost_NHD.shape[0]
    if samples < heads.head_dim:
        notice(
            "extract",
            f"{samples} samples are fewer than the {heads.head_dim} numbers of a head: only {samples} directions of "
            "each head carry a loss, the others complete the basis (more samples: corpus.contrast)",
        )
    tensors = {
        "directions": torch.stack([part.directions_HDD for part in parts]),
        "singular_values": torch.stack([part.singular_values_HD for part in parts]),
        "loadings": torch.stack([part.loadings_HD for part in parts]),
    }
    counts = {"samples": str(samples), "rank": str(min(samples, heads.head_dim))}
    with published(layout, layout.components(cell)) as (path,):
        write_tensors(path, tensors, metadata | counts)


def _common_layout(cell: Cell, dense: Path, pruned: Path) -> tuple[HeadLayout, dict[str, str]]:
    """The shape both have, and the digests that components carry. Raises BadInput unless both belong together."""
    heads, of_dense = read_layout(dense)
    others, of_pruned = read_layout(pruned)
    for folder, found in ((dense, of_dense), (pruned, of_pruned)):
        if found["model"] != cell.model:
            raise BadInput(
                f"{folder} holds activations of model {found['model']!r}, not {cell.model!r}: run `dvc repro`"
            )
    expect_digest("dense and pruned activations were captured on different text", of_dense["text"], of_pruned["text"])
    if "tokens" in of_dense or "tokens" in of_pruned:
        expect_digest(
            "dense and pruned activations were read at different tokens, by other tokenizers or capture.max_tokens",
            of_dense.get("tokens"),
            of_pruned.get("tokens", "none"),
        )
    if "dense" in of_pruned:
        expect_digest("the pruned model was made from another dense one", of_pruned["dense"], of_dense["checkpoint"])
    dtypes = [found.get("dtype", "unknown") for found in (of_dense, of_pruned)]
    if dtypes[0] != dtypes[1]:
        raise BadInput(
            f"the activations of the dense model were captured in {dtypes[0]}, those of the pruned one in {dtypes[1]}: "
            f"their difference is not of pruning alone; name one in models.{cell.model}.dtype (auto is bfloat16 on a "
            "GPU, float32 on the CPU), and capture again"
        )
    check_one_shape(heads, others)
    shape = {name: of_dense[name] for name in ("model", "layers", "heads", "head_dim", "text")}
    return heads, shape | {"dense": of_dense["checkpoint"], "pruned": of_pruned["checkpoint"]}
