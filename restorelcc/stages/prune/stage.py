"""Stage `prune`: the dense checkpoint with its least important weights set to zero, or one pruned elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restorelcc.base.cell import Cell
from restorelcc.base.digest import file_digest, model_digest
from restorelcc.base.documents import read_json, write_document
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.manifest import write_manifest
from restorelcc.base.model_entry import ModelEntry
from restorelcc.base.progress import notice
from restorelcc.base.prunings import Pruning, parse_pruning
from restorelcc.base.publish import published
from restorelcc.base.stock_files import GENERATION, has_tokenizer
from restorelcc.base.tables import read_metadata, read_texts
from restorelcc.models.architectures import prunable_linears
from restorelcc.models.biases import write_with_zero_biases
from restorelcc.models.checkpoints import (
    context_of,
    copy_processors,
    lend_generation,
    lend_tokenizer,
    load_model,
    load_tokenizer,
    local_folder,
    write_reference,
    write_tokenizer,
    writing_settings,
)
from restorelcc.models.references import make_relative, pinned_source
from restorelcc.models.runtime import pick_device, pick_dtype, prepare, return_large_buffers
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.sparsity.kept import KeptCheckpoint
from restorelcc.sparsity.streaming import StreamedWeights, can_stream, copy_checkpoint, empty_model
from restorelcc.stages.prune import PruneConfig
from restorelcc.stages.prune.calibration import calibration_batches
from restorelcc.stages.prune.external import check_fits, counted, measure_external
from restorelcc.stages.prune.prune import PrunedTensor, prune_model


@dataclass(frozen=True)
class Job:
    """What both ways of filling the folder need: pruning the dense checkpoint, or referring to one pruned elsewhere."""

    cell: Cell
    pruning: Pruning
    config: PruneConfig
    layout: Layout
    device: torch.device
    dtype: torch.dtype
    batches_BT: list[Tensor]


def run(cell: Cell, config: PruneConfig, model: ModelEntry, layout: Layout) -> None:
    """Write <model>/<pruning>/pruned/: a stock sparse checkpoint, or model_ref.json, and sparsity.json."""
    prepare(seed=config.seed, threads=model.threads)
    return_large_buffers()
    calibration = layout.corpus(cell) / "calibration.parquet"
    longest = context_of(layout.dense(cell), config.sequence_length)  # positions beyond it would mean nothing
    config = config.model_copy(update={"sequence_length": longest})
    tokenizer, device = load_tokenizer(layout.dense(cell)), pick_device(model.device)
    batches = calibration_batches(tokenizer, read_texts(calibration), config, device, short=model.is_microworld)
    pruning, dtype = parse_pruning(cell.pruning), pick_dtype(model.dtype, device)
    job = Job(cell, pruning, config, layout, device, dtype, batches)
    with published(layout, layout.pruned(cell)) as (folder,):
        results = _prune(job, folder) if pruning.external is None else _refer(job, folder)
        if pruning.external is None:
            if model.is_microworld:  # its files are what its class writes, and here writes again
                tokenizer.save_pretrained(folder)
            elif _is_relabelled(folder, local_folder(layout.dense(cell))):  # by which classes of tokenizers are chosen
                load_tokenizer(layout.dense(cell), padded=False).save_pretrained(folder)
            else:
                write_tokenizer(layout.dense(cell), folder)
            copy_processors(local_folder(layout.dense(cell)), folder)
        report = sparsity_report(pruning, results)
        if pruning.external is not None and not report["achieved"]:
            notice(
                f"prune {cell}", f"{pruning.name} has no zeros among the weights that pruning targets: is it pruned?"
            )
        report["calibration"] = {
            "source": read_metadata(calibration).get("source"),
            "sequences": sum(len(batch) for batch in batches),
            "tokens": sum(batch.numel() for batch in batches),
        }
        report["parameters_added"] = _parameters(folder, dtype) - _parameters(layout.dense(cell), dtype)
        if pruning.pruner == "refined":
            report["refined"] = config.refined.model_dump()
        if config.allocation != "uniform" and pruning.external is None:
            report["allocation"] = {"by": config.allocation, "spread": config.allocation_spread}
            if config.allocation == "owl":
                report["allocation"]["outliers_above"] = config.allocation_outliers
        report["parents"] = {"dense": model_digest(layout.dense(cell)), "calibration": file_digest(calibration)}
        write_document(folder / "sparsity.json", report)
        if pruning.external is not None:
            named = config.external[cell.model][pruning.external].source
            make_relative(layout.pruned(cell), folder, named, layout.root)
        lent = has_tokenizer(folder) or (folder / GENERATION).is_file()
        if pruning.external is None or lent:  # of another folder, the reference has the digests
            write_manifest(folder)


def _is_relabelled(folder: Path, dense: Path) -> bool:
    """Whether a checkpoint is of another class than the dense one: `refined` writes some as the Llama that computes the
    same."""
    own, other = (read_json(each / "config.json", tagged=True).get("model_type") for each in (folder, dense))
    return own != other


def _prune(job: Job, folder: Path) -> list[PrunedTensor]:
    """Prune the dense checkpoint into the folder, block by block where its tensors allow it."""
    dense = job.layout.dense(job.cell)
    source = local_folder(dense)
    network, stored = empty_model(source, job.dtype), stored_tensors(source)
    streams, biases = can_stream(network, stored), job.pruning.pruner == "refined" and job.config.refined.bias
    if streams and biases:
        write_with_zero_biases(source, network.config, folder)
        network, stored = empty_model(folder, job.dtype), stored_tensors(folder)
    if streams:
        if not biases:
            copy_checkpoint(source, folder)
        weights = StreamedWeights(network, stored, job.device, written=stored_tensors(folder))
        return prune_model(network, job.pruning, job.batches_BT, job.config, weights)
    kept = KeptCheckpoint(source, folder, biased=biases)
    network = load_model(folder if biases else dense, job.dtype, job.device)
    results = prune_model(network, job.pruning, job.batches_BT, job.config)
    kept.write(network, [linear for _, _, linear in prunable_linears(network)], with_zeros=True)
    if biases:
        kept.write_biases(network)
    return results


def _refer(job: Job, folder: Path) -> list[PrunedTensor]:
    """Refer to a checkpoint pruned elsewhere, where it is; nothing of it is copied."""
    name = job.pruning.external or ""
    entry = job.config.external.get(job.cell.model, {}).get(name)
    key = f"prune.external.{job.cell.model}.{name}"
    if entry is None:
        raise BadInput(f"params.yaml: {key} is missing: give the folder or hub id of {job.pruning.name} as its source")
    write_reference(folder, pinned_source(key, entry.source, entry.revision, job.layout.root))
    source, dense = local_folder(folder), local_folder(job.layout.dense(job.cell))
    network, stored = empty_model(source, job.dtype), stored_tensors(source)
    dense_network, dense_stored = empty_model(dense, job.dtype), stored_tensors(dense)
    check_fits(f"{key} ({entry.source})", network, dense_network)
    if lent := lend_tokenizer(job.layout.dense(job.cell), folder):
        notice(f"prune {job.cell}", f"{entry.source} has no tokenizer: the dense model's is used ({', '.join(lent)})")
    if lend_generation(job.layout.dense(job.cell), folder):
        notice(f"prune {job.cell}", f"{entry.source} has no {GENERATION}: the dense model's is used")
    _say_how_it_writes(job, entry.source, folder)
    load_tokenizer(folder)
    if can_stream(network, stored) and can_stream(dense_network, dense_stored):
        weights = StreamedWeights(network, stored, job.device)
        return measure_external(network, weights, dense_stored, job.batches_BT, job.config)
    return counted(load_model(folder, job.dtype, job.device), dense_stored)


def _say_how_it_writes(job: Job, source: str, folder: Path) -> None:
    """Where a checkpoint's own settings make it write by other rules than the dense model."""
    own, dense = writing_settings(folder), writing_settings(job.layout.dense(job.cell))
    if differing := [f"{name} {own[name]}, not {dense[name]}" for name in own if own[name] != dense[name]]:
        notice(
            f"prune {job.cell}",
            f"{source} writes by other settings than the dense model ({'; '.join(differing)}): texts that they write "
            "differ by that too, copy the dense model's generation_config.json into it to compare them",
        )


def _parameters(folder: Path, dtype: torch.dtype) -> int:
    return sum(parameter.numel() for parameter in empty_model(local_folder(folder), dtype).parameters())


def sparsity_report(pruning: Pruning, results: list[PrunedTensor]) -> dict[str, Any]:
    """Requested and achieved sparsity, in total, per layer and for every targeted tensor; errors as PrunedTensor's.

    A layer's error is the mean over its linears. `biases_changed`, where it is not 0, counts the linears whose bias is
    another than in the dense model.
    """
    changed = sum(result.bias_changed for result in results)
    layers = []
    for layer in sorted({result.layer for result in results}):
        own = [result for result in results if result.layer == layer]
        errors = [result.error for result in own if result.error is not None]
        error = sum(errors) / len(errors) if errors else None
        layers.append({"layer": layer, "sparsity": _share(own), "error": error})
    return {
        "pruning": pruning.name,
        "requested": pruning.sparsity.fraction if pruning.external is None else None,
        "pattern": str(pruning.sparsity) if pruning.sparsity.is_pattern else None,
        "achieved": _share(results),
        **({"biases_changed": changed} if changed else {}),
        "layers": layers,
        "tensors": {
            result.name: {
                "zeros": result.zeros,
                "total": result.total,
                "sparsity": result.zeros / result.total,
                "error": result.error,
            }
            for result in results
        },
    }


def _share(results: list[PrunedTensor]) -> float:
    return sum(result.zeros for result in results) / sum(result.total for result in results)
