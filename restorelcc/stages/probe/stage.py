"""Stage `probe`: which heads matter, best first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from restorelcc.activations.store import NEGATIVE, POSITIVE, QUESTION, check_one_shape, read_layer, read_layout
from restorelcc.base.cell import Cell
from restorelcc.base.digest import expect_digest, file_digest
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import ModelEntry
from restorelcc.base.progress import notice, progress
from restorelcc.base.publish import published
from restorelcc.base.tables import HEADS, write_table
from restorelcc.models.heads import HeadLayout, main_component
from restorelcc.models.runtime import prepare
from restorelcc.models.tensors import read_tensors
from restorelcc.stages.probe import ProbeConfig
from restorelcc.stages.probe.contrastive import (
    energy_scores,
    heldout_mask,
    kl_scores,
    mse_scores,
    probe_heads,
    rank_heads,
)
from restorelcc.stages.probe.margins import margin_scores
from restorelcc.stages.probe.relational import relational_scores

_LOG_LOSS = "log_loss"
_NUMBERS_AT_ONCE = 1024  # of a sample, from as many layers as have them: probing a few small heads is all overhead


def run(cell: Cell, config: ProbeConfig, model: ModelEntry, layout: Layout) -> None:
    """Write <model>/<pruning>/heads.parquet: one row per head with its scores and rank."""
    prepare(seed=config.seed, threads=model.threads)
    heads, metadata = _checked_parents(cell, config, layout)
    tensors, _ = read_tensors(layout.components(cell), ("directions", "loadings"))
    columns = _activation_scores(cell, config, layout, heads, tensors)
    mean_LHD = main_component(tensors["directions"], tensors["loadings"], heads.head_dim)
    columns |= margin_scores(cell, config, model, layout, mean_LHD)
    for name, score_LH in columns.items():
        if not score_LH.isfinite().all():
            layer, head = heads.pair(int((~score_LH.isfinite()).flatten().nonzero()[0]))
            raise StageFailed(f"probe: the score {name} of layer {layer}, head {head} is not a finite number")
    parents = {"components": file_digest(layout.components(cell)), "score": config.score} | {
        name: metadata[name] for name in ("model", "dense", "pruned", "text")
    }
    with published(layout, layout.heads(cell)) as (path,):
        write_table(path, head_rows(heads, columns, config.score), HEADS, parents)


def _checked_parents(cell: Cell, config: ProbeConfig, layout: Layout) -> tuple[HeadLayout, dict[str, str]]:
    """The shape, and the components' metadata. Raises BadInput unless both activations and components fit together."""
    metadata = read_tensors(layout.components(cell), ())[1]
    heads, of_pruned = read_layout(layout.pruned_activations(cell))
    others, of_dense = read_layout(layout.dense_activations(cell))
    check_one_shape(others, heads)
    expect_digest("components were extracted for another pruned model", metadata.get("pruned"), of_pruned["checkpoint"])
    expect_digest("components were extracted for another dense model", metadata.get("dense"), of_dense["checkpoint"])
    for found in (of_pruned, of_dense):
        expect_digest("components were extracted from other text", metadata.get("text"), found["text"])
    if config.components > heads.head_dim:
        raise BadInput(f"probe.components is {config.components}, but a head has {heads.head_dim} components")
    if int(metadata.get("samples", 2)) < 2 and {"paper", "relational"} & set(config.computed):
        raise BadInput(
            "probe needs at least 2 contrast tuples, one to train on and one held out: raise corpus.contrast"
        )
    if (rank := int(metadata.get("rank", heads.head_dim))) < config.components:
        notice("probe", f"probe.components is {config.components}, but only {rank} directions carry a loss")
    return heads, metadata


def _activation_scores(
    cell: Cell, config: ProbeConfig, layout: Layout, heads: HeadLayout, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """[L, H] of every score that activations alone give, a few layers at once."""
    component_LHD = main_component(tensors["directions"], tensors["loadings"], config.components)
    dense, pruned = layout.dense_activations(cell), layout.pruned_activations(cell)
    columns: dict[str, list[Tensor]] = {}
    for layers in progress(layer_groups(heads.layers, heads.heads * heads.head_dim), "probe", "groups of layers"):
        found = scores_from_activations(
            config,
            component_LHD[layers].flatten(0, 1),
            tensors["loadings"][layers].flatten(0, 1),
            lambda role, layers=layers: _read_layers(dense, layers, role, heads),  # type: ignore[misc]
            _read_layers(pruned, layers, QUESTION, heads),
        )
        for name, score_H in found.items():
            columns.setdefault(name, []).append(score_H)
    by_name = {name: torch.cat(parts).view(heads.layers, heads.heads) for name, parts in columns.items()}
    if "random" in config.computed:
        by_name["random"] = random_scores(heads, config.seed)
    return by_name


def scores_from_activations(
    config: ProbeConfig,
    component_HD: Tensor,
    loadings_HD: Tensor,
    dense_of: Callable[[str], Tensor],
    question_NHD: Tensor,
) -> dict[str, Tensor]:
    """[H] of every score that is asked for and needs activations alone, and of `paper` the log loss.

    component_HD, loadings_HD: of the components (`extract`); dense_of: the dense model's activations [N, H, D] of a
    role; question_NHD: the pruned model's.
    """
    wanted = set(config.computed)
    found: dict[str, Tensor] = {}
    if "energy" in wanted:
        found["energy"] = energy_scores(loadings_HD, config.components)
    if wanted & {"mse", "kl"}:
        dense_NHD = dense_of(QUESTION)
        found |= {"mse": mse_scores(dense_NHD, question_NHD), "kl": kl_scores(dense_NHD, question_NHD)}
    if wanted & {"paper", "relational"}:
        recovered_NHD = question_NHD + component_HD
        positive_NHD, negative_NHD = dense_of(POSITIVE), dense_of(NEGATIVE)
        heldout_N = heldout_mask(len(question_NHD), config.heldout_share, config.seed)
        if "paper" in wanted:
            scores = probe_heads(
                recovered_NHD,
                positive_NHD,
                negative_NHD,
                heldout_N,
                steps=config.steps,
                learning_rate=config.learning_rate,
                solver=config.solver,
            )
            found |= {"paper": scores.accuracy_H, _LOG_LOSS: scores.log_loss_H}
        if "relational" in wanted:
            found["relational"] = relational_scores(recovered_NHD, positive_NHD, negative_NHD, heldout_N)
    return {name: score_H for name, score_H in found.items() if name in wanted or name == _LOG_LOSS}


def random_scores(heads: HeadLayout, seed: int) -> Tensor:
    """[L, H], uniform in [0, 1)."""
    return torch.rand(heads.layers, heads.heads, generator=torch.Generator().manual_seed(seed))


def layer_groups(layers: int, width: int) -> list[list[int]]:
    """The layers that are scored at once: one by one, unless they are small. width: heads times head dim."""
    return [group.tolist() for group in torch.arange(layers).split(max(1, _NUMBERS_AT_ONCE // width))]


def _read_layers(folder: Path, layers: list[int], role: str, heads: HeadLayout) -> Tensor:
    """The activations of several layers, one layer's heads after another's: [N, H of all of them, D]."""
    return torch.cat([read_layer(folder, layer, role, heads) for layer in layers], dim=1)


def ranks(columns: dict[str, Tensor], score: str) -> Tensor:
    """[L, H]: 0 is the best by this score; of equal accuracies of the probe, the lower log loss is the better one."""
    log_loss_LH = columns[_LOG_LOSS] if score == "paper" else torch.zeros_like(columns[score])
    return rank_heads(columns[score], log_loss_LH)


def head_rows(heads: HeadLayout, columns: dict[str, Tensor], score: str) -> list[dict]:
    """Rows of heads.parquet, in rank order. columns: [L, H] each; `score` names the one that ranks."""
    score_LH, rank_LH = columns[score], ranks(columns, score)
    rows = []
    for flat in rank_LH.flatten().argsort().tolist():
        layer, head = heads.pair(flat)
        row = {"layer": layer, "head": head, "rank": int(rank_LH[layer, head]), "score": float(score_LH[layer, head])}
        rows.append(row | {name: float(values_LH[layer, head]) for name, values_LH in columns.items()})
    return rows
