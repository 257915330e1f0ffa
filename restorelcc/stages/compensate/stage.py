"""Stage `compensate`: train the compensation of the best-ranked heads."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from restorelcc.base.cell import AUTO, Cell
from restorelcc.base.digest import expect_digest, file_digest, model_digest, referred_content
from restorelcc.base.documents import write_document
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import ModelEntry
from restorelcc.base.progress import is_first_process, weights_are_shared_out
from restorelcc.base.publish import published
from restorelcc.base.tables import read_metadata
from restorelcc.compensation.file import write_compensation
from restorelcc.models.architectures import head_layout
from restorelcc.models.checkpoints import load_entry, load_model
from restorelcc.models.placement import shared_out
from restorelcc.models.runtime import computes_as, give_back_memory, pick_device, pick_dtype, prepare
from restorelcc.models.tensors import read_tensors
from restorelcc.stages.compensate import CompensateConfig
from restorelcc.stages.compensate.heads import best_heads, smallest_good_ratio
from restorelcc.stages.compensate.start import Lessons, initial_compensation, lessons, needs_dense, training_task
from restorelcc.training.compensation import Best, Pairs, fit_compensation
from restorelcc.training.pairs import TRAIN, VALID, read_pairs
from restorelcc.training.state import training_states


def run(cell: Cell, config: CompensateConfig, model: ModelEntry, layout: Layout) -> None:
    """Write <model>/<pruning>/heads-<ratio>/: compensation.safetensors and training.json."""
    prepare(seed=config.seed, threads=model.threads)
    pruned = layout.pruned(cell)
    parents = _checked_parents(cell, layout, config)
    pairs = read_pairs(layout.corpus(cell), pruned, config)
    learned = Lessons()
    if needs_dense(config):
        dense = _loaded(layout.dense(cell), model)
        learned = lessons(dense, config, pairs)
        del dense
        give_back_memory()
    network = _loaded(pruned, model)
    heads = head_layout(network)
    components = read_tensors(layout.components(cell), ("directions", "loadings"))[0]
    settings = {"config": config.model_dump_json(), "computed": computes_as(model.dtype, model.device)}
    with training_states(layout, "compensate", cell, parents | settings) as states:

        def trained(ratio: float) -> Best:
            key = "compensate.auto_ratios" if cell.head_ratio == AUTO else "grid.head_ratio"
            chosen = best_heads(layout.heads(cell), heads, ratio, key)
            initial = initial_compensation(network, chosen, components, config, pairs, learned)
            task = training_task(network, pairs, config, learned)
            title, stores = f"compensate {ratio:g}", states.part(f"ratio-{ratio:g}")
            guess = config.start != "normal"
            return fit_compensation(network, initial, pairs, config, title=title, stores=stores, task=task, guess=guess)

        ratio: float | None = None
        compared: list[dict] = []
        if cell.head_ratio == AUTO:
            ratio, best, compared = smallest_good_ratio(network, pairs, config.auto_ratios, trained)
        else:
            best = trained(float(cell.head_ratio or 0))
        if not is_first_process():
            return
        metadata = parents | {"model": cell.model, "heads": str(heads.heads), "layers": str(heads.layers)}
        metadata |= {"head_dim": str(heads.head_dim), "head_ratio": str(ratio or cell.head_ratio)}
        numbers = sum(part.numel() for part in best.compensation.parameters() if part.requires_grad)
        metadata |= {"params_trained": str(numbers)}
        document = training_document(best, pairs) | {"settings": config.model_dump(mode="json")}
        document |= {"head_ratio": ratio, "ratios": compared} if compared else {}
        with published(layout, layout.compensation(cell), layout.training(cell)) as (tensors_path, training_path):
            frozen, how = best.compensation.frozen(heads), best.compensation.trained(heads)
            write_compensation(tensors_path, frozen, metadata, how)
            write_document(training_path, document)


def _loaded(folder: Path, model: ModelEntry) -> PreTrainedModel:
    """A model where it trains: on its devices, or spread over several processes."""
    if not weights_are_shared_out():
        return load_entry(folder, model)
    device = pick_device(model.device)
    network = load_model(folder, pick_dtype(model.dtype, device), torch.device("cpu"))
    return shared_out(network, device)


def training_document(best: Best, pairs: Pairs) -> dict:
    """training.json: the chosen candidate and the losses of all, every run, the heads, and the number of pairs."""
    chosen = best.compensation.heads.heads if best.compensation.heads is not None else []
    return best.choice.as_json() | {"heads": chosen} | pairs.as_json()


def _checked_parents(cell: Cell, layout: Layout, config: CompensateConfig) -> dict[str, str]:
    """Digests of the inputs; refused unless heads, components and the pruned model belong together."""
    components = layout.components(cell)
    pruned = model_digest(layout.pruned(cell))
    recorded = read_tensors(components, ())[1]
    expect_digest("components were extracted for another pruned model", recorded.get("pruned"), pruned)
    of_heads = read_metadata(layout.heads(cell))
    expect_digest("heads were ranked with other components", of_heads.get("components"), file_digest(components))
    referred = referred_content(layout.pruned(cell))
    found = {"pruned_content": referred} if referred else {}
    found |= {"pruned": pruned, "components": file_digest(components), "ranking": file_digest(layout.heads(cell))}
    found |= {name: file_digest(layout.corpus(cell) / name) for name in (TRAIN, VALID)}
    if text := recorded.get("text"):
        found["contrast.parquet"] = text  # what heads and components were found on
    return found | ({"dense": model_digest(layout.dense(cell))} if needs_dense(config) else {})
