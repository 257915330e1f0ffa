"""Stages `evaluate_dense`, `_pruned`, `_restored` and `_recovered`: metrics JSON and per-item samples.

Beside the metrics, which are equal for equal models, lie details: timings, continuations, tests per task, and what the
report shows of the heads.
"""

from __future__ import annotations

from typing import Any

from restorelcc.base.cell import Cell
from restorelcc.base.digest import expect_digest, model_digest
from restorelcc.base.documents import read_document
from restorelcc.base.errors import StageFailed
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import ModelEntry
from restorelcc.base.progress import notice
from restorelcc.compensation.adapter import MERGED
from restorelcc.compensation.file import ADAPTER, COMPENSATION, DOCUMENT, MODEL
from restorelcc.models.placement import all_at_hand
from restorelcc.stages.evaluate import EvaluateConfig, cost
from restorelcc.stages.evaluate.details import head_details, pruning_details
from restorelcc.stages.evaluate.evaluation import Evaluation
from restorelcc.stages.evaluate.rivals import ROUNDINGS, Rounding, round_linears, rounded_bytes
from restorelcc.stages.evaluate.sanity import complaint


def run_dense(cell: Cell, config: EvaluateConfig, model: ModelEntry, layout: Layout) -> None:
    """Write metrics/<model>/dense.json, .parquet, .details.json, and the reference that the others are compared with.

    Raises StageFailed, with nothing written, when the model is at chance, unless config.sanity_gate is off.
    """
    evaluation = Evaluation(cell, config, model, layout, layout.dense(cell))
    evaluation.measure()
    if config.sanity_gate:
        answered = [row for row in evaluation.rows if evaluation.averaged[row["task"]]]
        found = complaint(answered, evaluation.metrics["perplexity"]["value"], evaluation.vocabulary)
        if found:
            raise StageFailed(
                f"the dense model {cell.model} looks broken: {found}; check that its weights and its tokenizer belong "
                "together, or set evaluate.sanity_gate to false to continue"
            )
    if not all_at_hand(evaluation.network):
        notice("evaluate", "the rivals are left out: their rounding needs all weights in memory, not on disk")
        config = config.model_copy(update={"rivals": ()})
    evaluation.details["seconds"]["total"] = evaluation.elapsed()
    evaluation.let_go()  # before the next model is loaded
    evaluation.details["rivals"] = {
        name: _rival(ROUNDINGS[name], evaluation.averaged, cell, config, model, layout)
        for name in dict.fromkeys(config.rivals)
    }
    evaluation.write()


def _rival(
    rounding: Rounding,
    averaged: dict[str, bool],
    cell: Cell,
    config: EvaluateConfig,
    model: ModelEntry,
    layout: Layout,
) -> dict[str, Any]:
    """What the dense model measures rounded to few bits, and the bytes that it would take. averaged: which tasks count
    into its own mean, and so into the rival's."""
    rival = Evaluation(cell, config, model, layout, layout.dense(cell), at_hand=True)
    size = rounded_bytes(rival.network, rounding, rival.metrics["file_bytes"])
    round_linears(rival.network, rounding)
    rival.measure_quality(averaged=averaged)
    rival.let_go()
    kept = {name: rival.metrics[name] for name in ("tasks", "mean", "perplexity", "bits_per_byte")}
    return {"bits": rounding.bits, "group": rounding.group, "file_bytes": size, **kept, "seconds": rival.elapsed()}


def run_pruned(cell: Cell, config: EvaluateConfig, model: ModelEntry, layout: Layout) -> None:
    """Write metrics/<model>/<pruning>/pruned.json, .parquet and .details.json; tests where dense was asked."""
    evaluation = Evaluation(cell, config, model, layout, layout.pruned(cell))
    others = [Cell(cell.model)] if layout.samples(Cell(cell.model)).is_file() else []
    evaluation.expect_like(others)
    evaluation.measure()
    if others:
        evaluation.compare_with(others)
    evaluation.details |= pruning_details(layout.pruned(cell))
    evaluation.write()


def run_restored(cell: Cell, config: EvaluateConfig, model: ModelEntry, layout: Layout) -> None:
    """Write metrics/<model>/<pruning>/heads-<ratio>.json and so on, of the pruned model with its compensation."""
    evaluation = Evaluation(cell, config, model, layout, layout.pruned(cell))
    others = [Cell(cell.model), Cell(cell.model, cell.pruning)]
    evaluation.expect_like(others)
    evaluation.measure(evaluation.restore(layout.compensation(cell)))
    evaluation.compare_with(others)
    evaluation.details |= head_details(cell, layout)
    evaluation.write()


def run_recovered(cell: Cell, config: EvaluateConfig, model: ModelEntry, layout: Layout) -> None:
    """Write metrics/<model>/<pruning>/<recovery>.json and so on."""
    folder = layout.recovered(cell)
    document = read_document(folder / DOCUMENT)
    recorded, found = document["parents"].get("pruned"), model_digest(layout.pruned(cell))
    expect_digest(f"the result in {folder} was made for another pruned model", recorded, found)
    others = [Cell(cell.model), Cell(cell.model, cell.pruning)]

    def loaded(variant: str | None = None) -> tuple[Evaluation, cost.Biases | None]:
        checkpoint = folder / MODEL if document["kind"] == "checkpoint" else layout.pruned(cell)
        beside = document["kind"] == "adapter"
        evaluation, before = Evaluation(cell, config, model, layout, checkpoint, at_hand=beside), None
        if (folder / COMPENSATION).is_file():
            before = evaluation.restore(folder / COMPENSATION)
        if beside:
            evaluation.adapt(folder / ADAPTER, variant)
        return evaluation, before

    def merged(variant: str) -> dict[str, Any]:
        evaluation, _ = loaded(variant)
        evaluation.measure_quality()
        evaluation.compare_with(others)
        evaluation.let_go()
        kept = ("measured", "tasks", "mean", "perplexity", "bits_per_byte", "sparsity", "params_added", "recovered")
        return {name: evaluation.metrics[name] for name in kept if name in evaluation.metrics}

    evaluation, before = loaded()
    evaluation.expect_like(others)
    evaluation.measure(before)
    evaluation.compare_with(others)
    evaluation.metrics["params_trained"] = document["params_trained"]
    evaluation.details["no_change"] = document.get("no_change", False)
    if document["kind"] == "adapter":
        evaluation.let_go()  # before the merged ones are loaded
        evaluation.metrics["variants"] = {variant: merged(variant) for variant in MERGED}
    evaluation.write()
