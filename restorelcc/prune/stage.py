"""Stage `prune`: the dense checkpoint with its least important weights set to zero."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from restorelcc.core.architectures import prunable_linears
from restorelcc.core.cell import Cell
from restorelcc.core.model_entry import ModelEntry
from restorelcc.core.pruning import Pruning, parse_pruning
from restorelcc.core.runtime import pick_device, pick_dtype, prepare
from restorelcc.io.checkpoints import load_model, load_tokenizer, save_checkpoint
from restorelcc.io.digest import file_digest, model_digest
from restorelcc.io.documents import write_json
from restorelcc.io.layout import Layout
from restorelcc.io.scratch import published
from restorelcc.io.tables import read_texts
from restorelcc.prune.calibration import calibration_batches
from restorelcc.prune.config import PruneConfig
from restorelcc.prune.prune import prune_model


def run(cell: Cell, config: PruneConfig, model: ModelEntry, layout: Layout) -> None:
    """Write <model>/<pruning>/pruned/: a stock sparse checkpoint and sparsity.json."""
    prepare(seed=config.seed, threads=model.threads)
    pruning = parse_pruning(cell.pruning)
    device = pick_device(model.device)
    tokenizer = load_tokenizer(layout.dense(cell))
    calibration = layout.corpus(cell) / "calibration.parquet"
    batches = calibration_batches(tokenizer, read_texts(calibration), config, device)
    network = load_model(layout.dense(cell), pick_dtype(model.dtype, device), device)
    prune_model(network, pruning, batches)
    parents = {"dense": model_digest(layout.dense(cell)), "calibration": file_digest(calibration)}
    with published(layout, layout.pruned(cell)) as (folder,):
        save_checkpoint(folder, network, tokenizer)
        write_json(folder / "sparsity.json", sparsity_report(network, pruning) | {"parents": parents})


def sparsity_report(model: PreTrainedModel, pruning: Pruning) -> dict[str, Any]:
    """Requested and achieved sparsity, in total and for every targeted tensor."""
    tensors = {}
    all_zeros = all_weights = 0
    for _, name, linear in prunable_linears(model):
        zeros, total = int((linear.weight == 0).sum()), linear.weight.numel()
        tensors[f"{name}.weight"] = {"zeros": zeros, "total": total, "sparsity": zeros / total}
        all_zeros, all_weights = all_zeros + zeros, all_weights + total
    return {
        "pruning": pruning.name,
        "requested": pruning.sparsity.fraction,
        "pattern": str(pruning.sparsity) if pruning.sparsity.is_pattern else None,
        "achieved": all_zeros / all_weights,
        "tensors": tensors,
    }
