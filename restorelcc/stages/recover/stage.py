"""Stage `recover`: recover a pruned model in another way than by its best-ranked heads, for comparison."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from restorelcc.base.cell import Cell
from restorelcc.base.digest import expect_digest, file_digest, model_digest, referred_content
from restorelcc.base.documents import write_document
from restorelcc.base.layout import Layout
from restorelcc.base.manifest import write_manifest
from restorelcc.base.model_entry import ModelEntry
from restorelcc.base.progress import is_first_process
from restorelcc.base.publish import published
from restorelcc.base.recoveries import RECOVERIES, check_recovery
from restorelcc.compensation.file import ADAPTER, COMPENSATION, DOCUMENT, MODEL, write_compensation
from restorelcc.models.checkpoints import copy_generation, copy_processors, local_folder, write_tokenizer
from restorelcc.models.runtime import computes_as, prepare
from restorelcc.models.tensors import read_tensors
from restorelcc.stages.recover import RecoverConfig
from restorelcc.stages.recover.adapters import dora, eora, lora, write_adapter
from restorelcc.stages.recover.biases import compensated, free_biases, meanshift, random
from restorelcc.stages.recover.lofit import lofit
from restorelcc.stages.recover.reconstruct import reconstruct
from restorelcc.stages.recover.result import Inputs, Recovered
from restorelcc.stages.recover.weights import distilled, masked, masked_lora
from restorelcc.training.pairs import TRAIN, VALID
from restorelcc.training.state import training_states

METHODS: dict[str, Callable[[Inputs], Recovered]] = {
    "random": random,
    "bias": free_biases(("o",)),
    "ffn": free_biases(("down",)),
    "meanshift": meanshift,
    "lofit": lofit,
    "lora": lora,
    "dora": dora,
    "eora": eora,
    "masked": masked,
    "masked-lora": masked_lora,
    "reconstruct": reconstruct,
    "masked-compensated": compensated(masked),
    "reconstruct-compensated": compensated(reconstruct),
    "reconstruct-distilled": distilled(reconstruct),
}


def run(cell: Cell, config: RecoverConfig, model: ModelEntry, layout: Layout) -> None:
    """Write <model>/<pruning>/baseline-<name>/: recovery.json, and compensation.safetensors, a checkpoint
    (model/), both (the compensation is then that checkpoint's), or an adapter (adapter/)."""
    name = check_recovery("--recovery", cell.recovery)
    prepare(seed=config.seed, threads=model.threads)
    parents = _checked_parents(cell, layout)
    settings = {"config": config.model_dump_json(), "computed": computes_as(model.dtype, model.device)}
    with training_states(layout, "recover", cell, parents | settings, ("sparsity",)) as states:
        result = METHODS[name](Inputs(cell, config, model, layout, states))
        if not is_first_process():
            return
        document = {"recovery": name, "what": RECOVERIES[name].does, "parents": parents}
        document |= {"settings": config.model_dump(mode="json")}
        with published(layout, layout.recovered(cell)) as (folder,):
            folder.mkdir()
            document |= _write(folder, result, cell, layout, parents)
            gained = {"no_change": result.unchanged, "weights_unchanged": result.weights_unchanged}
            write_document(folder / DOCUMENT, document | gained | {"training": result.training})
            write_manifest(folder)


def _write(folder: Path, result: Recovered, cell: Cell, layout: Layout, parents: dict[str, str]) -> dict:
    """Write the result; returns its kind and how many numbers were trained."""
    if result.adapter is not None:
        write_adapter(folder / ADAPTER, result.adapter)
        return {"kind": "adapter", "params_trained": result.params_trained}
    of, whole = parents["pruned"], result.checkpoint is not None
    if result.checkpoint is not None:
        shutil.move(result.checkpoint.folder, folder / MODEL)
        write_tokenizer(layout.pruned(cell), folder / MODEL)
        copy_processors(local_folder(layout.pruned(cell)), folder / MODEL)
        copy_generation(layout.pruned(cell), folder / MODEL)
        of = model_digest(folder / MODEL)
    if result.compensation is not None:
        heads = result.heads
        metadata = parents | {"pruned": of, "model": cell.model, "recovery": str(cell.recovery)}
        metadata |= {name: str(getattr(heads, name)) for name in ("layers", "heads", "head_dim")}
        frozen, parts = result.compensation.frozen(heads), result.compensation.trained(heads)
        write_compensation(folder / COMPENSATION, frozen, metadata, parts)
    return {"kind": "checkpoint" if whole else "compensation", "params_trained": result.params_trained}


def _checked_parents(cell: Cell, layout: Layout) -> dict[str, str]:
    """Digests of all inputs; refused unless the components are those of the pruned model."""
    components, pruned = layout.components(cell), model_digest(layout.pruned(cell))
    recorded = read_tensors(components, ())[1]
    expect_digest("components were extracted for another pruned model", recorded.get("pruned"), pruned)
    corpus = layout.corpus(cell)
    tables = {name: file_digest(corpus / name) for name in (TRAIN, VALID, "calibration.parquet")}
    referred = referred_content(layout.pruned(cell))
    parents = {"pruned_content": referred} if referred else {}
    parents |= {"pruned": pruned, "dense": model_digest(layout.dense(cell)), "components": file_digest(components)}
    return parents | tables
