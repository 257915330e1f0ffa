"""Stages `evaluate_dense`, `_pruned`, `_restored` and `_baseline`: metrics JSON and per-item samples."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from restorelcc.core.architectures import prunable_linears
from restorelcc.core.cell import Cell
from restorelcc.core.compensation import Compensation
from restorelcc.core.fold import bias_additions, fold
from restorelcc.core.model_entry import ModelEntry
from restorelcc.core.runtime import pick_device, pick_dtype, prepare
from restorelcc.evaluate.config import EvaluateConfig
from restorelcc.evaluate.harness import item_rows, run_harness, scratch_cache, selected_tasks, task_metrics
from restorelcc.evaluate.perplexity import token_perplexity
from restorelcc.evaluate.statistics import correct_by_task, recovered_share
from restorelcc.io.baseline_folder import COMPENSATION, DOCUMENT, MODEL
from restorelcc.io.checkpoints import load_model, load_tokenizer
from restorelcc.io.compensations import read_compensation
from restorelcc.io.digest import expect_digest, model_digest
from restorelcc.io.documents import read_json, write_json
from restorelcc.io.layout import Layout
from restorelcc.io.sample_table import SAMPLES
from restorelcc.io.scratch import published
from restorelcc.io.tables import read_table, read_texts, write_table
from restorelcc.io.tensors import read_tensors

_PACKAGES = ("restorelcc", "torch", "transformers", "lm_eval", "datasets")


def run_dense(cell: Cell, config: EvaluateConfig, model: ModelEntry, layout: Layout) -> None:
    """Write metrics/<model>/dense.json and dense.parquet."""
    _run(cell, config, model, layout, layout.dense(cell))


def run_pruned(cell: Cell, config: EvaluateConfig, model: ModelEntry, layout: Layout) -> None:
    """Write metrics/<model>/<pruning>/pruned.json and pruned.parquet."""
    _run(cell, config, model, layout, layout.pruned(cell))


def run_restored(cell: Cell, config: EvaluateConfig, model: ModelEntry, layout: Layout) -> None:
    """Write metrics/<model>/<pruning>/heads-<ratio>.json and .parquet, of the pruned model with its compensation."""
    _run(cell, config, model, layout, layout.pruned(cell), layout.compensation(cell))


def run_baseline(cell: Cell, config: EvaluateConfig, model: ModelEntry, layout: Layout) -> None:
    """Write metrics/<model>/<pruning>/<baseline>.json and .parquet."""
    folder = layout.baseline(cell)
    document = read_json(folder / DOCUMENT)
    expect_digest(
        f"the baseline in {folder} was made for another pruned model",
        document["parents"].get("pruned"),
        model_digest(layout.pruned(cell)),
    )
    if document["kind"] == "compensation":
        _run(cell, config, model, layout, layout.pruned(cell), folder / COMPENSATION)
    else:
        _run(cell, config, model, layout, folder / MODEL)


def _run(
    cell: Cell,
    config: EvaluateConfig,
    model: ModelEntry,
    layout: Layout,
    checkpoint: Path,
    compensation: Path | None = None,
) -> None:
    started = time.perf_counter()
    prepare(seed=config.seed, threads=model.threads)
    device = pick_device(model.device)
    network = load_model(checkpoint, pick_dtype(model.dtype, device), device)
    counts = parameter_counts(network)
    if compensation is not None:
        counts |= _compensate(network, compensation, model_digest(layout.pruned(cell)))
    tokenizer = load_tokenizer(checkpoint)
    texts = read_texts(layout.corpus(cell) / "heldout.parquet")
    with scratch_cache(layout.work) as cache:
        tasks = selected_tasks(layout.corpus(cell) / "tasks", cache)
        results = run_harness(
            network, tokenizer, tasks, batch_size=config.batch_size, limit=config.limit, seed=config.seed
        )
    tasks_found, rows = task_metrics(results), item_rows(results)
    metrics: dict[str, Any] = {"model": cell.model, "pruning": cell.pruning, "head_ratio": _number(cell.head_ratio)}
    if cell.baseline is not None:
        metrics["baseline"] = cell.baseline
    metrics["tasks"] = tasks_found
    metrics["mean"] = sum(task["value"] for task in tasks_found.values()) / len(tasks_found) if tasks_found else None
    perplexity = token_perplexity(network, tokenizer, texts, config.perplexity_tokens)
    metrics["perplexity"] = {"corpus": "heldout", **perplexity}
    metrics |= counts | {"sparsity": sparsity_of(network)}
    if (cell.head_ratio or cell.baseline) and rows:
        metrics["recovered"] = _recovered(cell, config, layout, rows)
    metrics["seconds"] = round(time.perf_counter() - started, 3)
    metrics["versions"] = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    with published(layout, layout.metrics(cell), layout.samples(cell)) as (metrics_path, samples_path):
        write_json(metrics_path, metrics)
        write_table(samples_path, rows, SAMPLES)


def _compensate(network: PreTrainedModel, file: Path, pruned: str) -> dict[str, int]:
    """Fold the compensation; returns how many bias entries that adds and how many numbers were trained."""
    compensation, metadata = read_compensation(file)
    expect_digest(f"{file} was trained for another pruned model", metadata.get("pruned"), pruned)
    added = folded_parameters(network, compensation)
    parts = read_tensors(file, ("beta", "bias"))[0]
    trained = parts["beta"].numel() + parts["bias"].numel() + sum(map(len, compensation.sites.values()))
    fold(network, compensation)
    return {"params_added": added, "params_trained": trained}


def _number(label: str | None) -> float | None:
    return None if label is None else float(label)


def _recovered(cell: Cell, config: EvaluateConfig, layout: Layout, rows: list[dict[str, Any]]) -> dict[str, Any]:
    dense, pruned = (
        correct_by_task(read_table(layout.samples(other), SAMPLES))
        for other in (Cell(cell.model), Cell(cell.model, cell.pruning))
    )
    return recovered_share(dense, pruned, correct_by_task(rows), samples=config.bootstrap_samples, seed=config.seed)


def parameter_counts(model: PreTrainedModel) -> dict[str, int]:
    """All parameters, those that are not zero, and none added."""
    parameters = list(model.parameters())
    nonzero = sum(int(torch.count_nonzero(parameter)) for parameter in parameters)
    return {"params_total": sum(p.numel() for p in parameters), "params_nonzero": nonzero, "params_added": 0}


def folded_parameters(model: PreTrainedModel, compensation: Compensation | Tensor) -> int:
    """Bias entries that the fold adds: one per output of every compensated linear that has no bias yet."""
    if isinstance(compensation, Tensor):
        compensation = Compensation(compensation)
    additions = bias_additions(model, compensation)
    return sum(linear.out_features for _, linear, _ in additions if linear.bias is None)


def sparsity_of(model: PreTrainedModel) -> float:
    """Share of exact zeros in the linear weights that pruning targets."""
    weights = [linear.weight for _, _, linear in prunable_linears(model)]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
