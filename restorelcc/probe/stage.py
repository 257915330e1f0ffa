"""Stage `probe`: which heads matter, best first."""

from __future__ import annotations

import torch
from torch import Tensor

from restorelcc.core.cell import Cell
from restorelcc.core.components import main_component
from restorelcc.core.errors import BadInput
from restorelcc.core.heads import HeadLayout
from restorelcc.core.model_entry import ModelEntry
from restorelcc.core.progress import progress
from restorelcc.core.runtime import prepare
from restorelcc.io.activations import NEGATIVE, POSITIVE, QUESTION, read_layer, read_layout
from restorelcc.io.digest import expect_digest, file_digest
from restorelcc.io.head_table import HEADS
from restorelcc.io.layout import Layout
from restorelcc.io.scratch import published
from restorelcc.io.tables import write_table
from restorelcc.io.tensors import read_tensors
from restorelcc.probe.config import ProbeConfig
from restorelcc.probe.contrastive import heldout_mask, probe_heads
from restorelcc.probe.ranking import rank_heads


def run(cell: Cell, config: ProbeConfig, model: ModelEntry, layout: Layout) -> None:
    """Write <model>/<pruning>/heads.parquet: one row per head with its scores and rank."""
    prepare(seed=config.seed, threads=model.threads)
    tensors, metadata = read_tensors(layout.components(cell), ("directions", "loadings"))
    dense, pruned = layout.dense_activations(cell), layout.pruned_activations(cell)
    heads, of_pruned = read_layout(pruned)
    expect_digest("components were extracted for another pruned model", metadata.get("pruned"), of_pruned["checkpoint"])
    expect_digest("components were extracted from other text", metadata.get("text"), of_pruned["text"])
    if config.components > heads.head_dim:
        raise BadInput(f"probe.components is {config.components}, but a head has {heads.head_dim} components")
    component_LHD = main_component(tensors["directions"], tensors["loadings"], config.components)
    columns: dict[str, list[Tensor]] = {"accuracy": [], "log_loss": [], "energy": []}
    for layer in progress(range(heads.layers), "probe", "layers"):
        question_NHD = read_layer(pruned, layer, QUESTION, heads)
        lost_NHD = read_layer(dense, layer, QUESTION, heads) - question_NHD
        scores = probe_heads(
            question_NHD + component_LHD[layer],
            read_layer(dense, layer, POSITIVE, heads),
            read_layer(dense, layer, NEGATIVE, heads),
            heldout_mask(question_NHD.shape[0], config.heldout_share, config.seed),
            steps=config.steps,
            learning_rate=config.learning_rate,
        )
        columns["accuracy"].append(scores.accuracy_H)
        columns["log_loss"].append(scores.log_loss_H)
        columns["energy"].append(lost_NHD.double().square().mean(dim=(0, 2)))
    by_name = {name: torch.stack(parts) for name, parts in columns.items()}
    parents = {"components": file_digest(layout.components(cell)), "score": config.score} | {
        name: metadata[name] for name in ("model", "dense", "pruned", "text")
    }
    with published(layout, layout.heads(cell)) as (path,):
        write_table(path, head_rows(heads, by_name, config), HEADS, parents)


def head_rows(heads: HeadLayout, columns: dict[str, Tensor], config: ProbeConfig) -> list[dict]:
    """Rows of heads.parquet, in rank order. columns: [L, H] each; `score` is the column that config.score names."""
    if config.score == "random":
        score_LH = torch.rand(heads.layers, heads.heads, generator=torch.Generator().manual_seed(config.seed))
    else:
        score_LH = columns[{"paper": "accuracy", "energy": "energy"}[config.score]]
    rank_LH = rank_heads(score_LH, columns["log_loss"])
    rows = []
    for flat in rank_LH.flatten().argsort().tolist():
        layer, head = heads.pair(flat)
        row = {"layer": layer, "head": head, "rank": int(rank_LH[layer, head]), "score": float(score_LH[layer, head])}
        rows.append(row | {name: float(values_LH[layer, head]) for name, values_LH in columns.items()})
    return rows
