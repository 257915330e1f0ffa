"""Stages `evaluate_dense`, `_pruned`, `_restored` and `_baseline`: metrics JSON and per-item samples."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from restorelcc.core.architectures import prunable_linears
from restorelcc.core.cell import Cell
from restorelcc.core.compensation import Compensation
from restorelcc.core.fold import bias_additions, fold
from restorelcc.core.grid import AUTO
from restorelcc.core.model_entry import ModelEntry
from restorelcc.core.runtime import pick_device, pick_dtype, prepare
from restorelcc.evaluate.config import EvaluateConfig
from restorelcc.evaluate.harness import item_rows, run_harness, scratch_cache, selected_tasks, task_metrics
from restorelcc.evaluate.perplexity import token_perplexity
from restorelcc.evaluate.statistics import correct_by_task, recovered_share
from restorelcc.io.baseline_folder import ADAPTER, COMPENSATION, DOCUMENT, MODEL, read_adapter
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
    _run(cell, config, model, layout, Subject(layout.dense(cell)))


def run_pruned(cell: Cell, config: EvaluateConfig, model: ModelEntry, layout: Layout) -> None:
    """Write metrics/<model>/<pruning>/pruned.json and pruned.parquet."""
    _run(cell, config, model, layout, Subject(layout.pruned(cell)))


def run_restored(cell: Cell, config: EvaluateConfig, model: ModelEntry, layout: Layout) -> None:
    """Write metrics/<model>/<pruning>/heads-<ratio>.json and .parquet, of the pruned model with its compensation."""
    _run(cell, config, model, layout, Subject(layout.pruned(cell), layout.compensation(cell)))


def run_baseline(cell: Cell, config: EvaluateConfig, model: ModelEntry, layout: Layout) -> None:
    """Write metrics/<model>/<pruning>/<baseline>.json and .parquet."""
    folder = layout.baseline(cell)
    document = read_json(folder / DOCUMENT)
    expect_digest(
        f"the baseline in {folder} was made for another pruned model",
        document["parents"].get("pruned"),
        model_digest(layout.pruned(cell)),
    )
    files = Subject(layout.pruned(cell))
    match document["kind"]:
        case "compensation":
            files = Subject(layout.pruned(cell), folder / COMPENSATION)
        case "checkpoint":
            further = folder / COMPENSATION
            files = Subject(folder / MODEL, further if further.is_file() else None)
        case "adapter":
            files = Subject(layout.pruned(cell), adapter=folder / ADAPTER)
    _run(cell, config, model, layout, files, {"params_trained": document["params_trained"]})


@dataclass(frozen=True)
class Subject:
    """What is measured: a checkpoint, and a compensation or an adapter that belongs to it."""

    checkpoint: Path
    compensation: Path | None = None
    adapter: Path | None = None


def _run(
    cell: Cell,
    config: EvaluateConfig,
    model: ModelEntry,
    layout: Layout,
    subject: Subject,
    known: dict[str, int] | None = None,
) -> None:
    started = time.perf_counter()
    prepare(seed=config.seed, threads=model.threads)
    device = pick_device(model.device)
    network = load_model(subject.checkpoint, pick_dtype(model.dtype, device), device)
    counts = parameter_counts(network) | (known or {}) | {"sparsity": sparsity_of(network)}
    if subject.compensation is not None:
        counts |= _compensate(network, subject.compensation, model_digest(subject.checkpoint)) | (known or {})
    metrics: dict[str, Any] = {"model": cell.model, "pruning": cell.pruning, "head_ratio": _number(cell.head_ratio)}
    metrics |= {} if cell.baseline is None else {"baseline": cell.baseline}
    tokenizer = load_tokenizer(subject.checkpoint)

    def measured(shown: PreTrainedModel) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        found, rows = measure(shown, tokenizer, cell, config, layout)
        if (cell.head_ratio or cell.baseline) and rows:
            found["recovered"] = _recovered(cell, config, layout, rows)
        return found, rows

    if subject.adapter is None:
        found, rows = measured(network)
        metrics |= found | counts
    else:
        kept = {name: linear.weight != 0 for _, name, linear in prunable_linears(network)}
        adapted = read_adapter(subject.adapter, network)
        added = sum(part.numel() for name, part in adapted.named_parameters() if "lora_" in name)
        found, rows = measured(adapted)  # type: ignore[arg-type]
        metrics |= found | counts | {"params_added": added}
        metrics["variants"] = {name: measured(merged)[0] | {"sparsity": sparsity_of(merged)}
                               for name, merged in merged_variants(adapted, kept)}  # fmt: skip
    metrics["seconds"] = round(time.perf_counter() - started, 3)
    metrics["versions"] = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    with published(layout, layout.metrics(cell), layout.samples(cell)) as (metrics_path, samples_path):
        write_json(metrics_path, metrics)
        write_table(samples_path, rows, SAMPLES)


def measure(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cell: Cell, config: EvaluateConfig, layout: Layout
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Accuracy of every task and their mean, and perplexity; and the results per item."""
    texts = read_texts(layout.corpus(cell) / "heldout.parquet")
    with scratch_cache(layout.work) as cache:
        tasks = selected_tasks(layout.corpus(cell) / "tasks", cache)
        results = run_harness(
            network, tokenizer, tasks, batch_size=config.batch_size, limit=config.limit, seed=config.seed
        )
    found = task_metrics(results)
    mean = sum(task["value"] for task in found.values()) / len(found) if found else None
    perplexity = token_perplexity(network, tokenizer, texts, config.perplexity_tokens)
    return {"tasks": found, "mean": mean, "perplexity": {"corpus": "heldout", **perplexity}}, item_rows(results)


def merged_variants(adapted: PeftModel, kept: dict[str, Tensor]) -> Iterator[tuple[str, PreTrainedModel]]:
    """The model with its adapter merged, which fills zeros; and the same with the pruned zeros put back.

    kept: by name of each pruned linear, where its weight is not zero.
    """
    merged: Any = adapted.merge_and_unload()
    yield "merged", merged
    with torch.no_grad():
        for _, name, linear in prunable_linears(merged):
            linear.weight.mul_(kept[name])
    yield "merged, zeros put back", merged


def _compensate(network: PreTrainedModel, file: Path, pruned: str) -> dict[str, int]:
    """Fold the compensation; returns how many bias entries that adds and how many numbers were trained."""
    compensation, metadata = read_compensation(file)
    expect_digest(f"{file} was trained for another pruned model", metadata.get("pruned"), pruned)
    added = folded_parameters(network, compensation)
    parts = read_tensors(file, ("beta", "bias"))[0]
    trained = parts["beta"].numel() + parts["bias"].numel() + sum(map(len, compensation.sites.values()))
    fold(network, compensation)
    return {"params_added": added, "params_trained": trained}


def _number(label: str | None) -> float | str | None:
    return label if label is None or label == AUTO else float(label)


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
