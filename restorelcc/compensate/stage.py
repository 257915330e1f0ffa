"""Stage `compensate`: train the compensation of the best-ranked heads."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from restorelcc.compensate.compensation import HeadCompensation
from restorelcc.compensate.config import CompensateConfig
from restorelcc.compensate.train import Trained, train_compensation
from restorelcc.core.architectures import head_layout
from restorelcc.core.cell import Cell
from restorelcc.core.errors import BadInput
from restorelcc.core.heads import HeadLayout, chosen_count
from restorelcc.core.model_entry import ModelEntry
from restorelcc.core.runtime import pick_device, pick_dtype, prepare
from restorelcc.core.text import EncodedPair, encode_pair
from restorelcc.io.checkpoints import load_model, load_tokenizer
from restorelcc.io.corpus_tables import EXAMPLES
from restorelcc.io.digest import expect_digest, file_digest, model_digest
from restorelcc.io.documents import write_json
from restorelcc.io.head_table import HEADS
from restorelcc.io.layout import Layout
from restorelcc.io.scratch import published
from restorelcc.io.tables import read_metadata, read_table
from restorelcc.io.tensors import read_tensors, write_tensors


def run(cell: Cell, config: CompensateConfig, model: ModelEntry, layout: Layout) -> None:
    """Write <model>/<pruning>/heads-<ratio>/: compensation.safetensors and training.json."""
    prepare(seed=config.seed, threads=model.threads)
    device = pick_device(model.device)
    pruned = layout.pruned(cell)
    parents = _checked_parents(cell, layout)
    directions_LHDD = read_tensors(layout.components(cell), ("directions",))[0]["directions"]
    network = load_model(pruned, pick_dtype(model.dtype, device), device)
    tokenizer = load_tokenizer(pruned)
    heads = head_layout(network)
    chosen = best_heads(layout.heads(cell), heads, float(cell.head_ratio or 0))
    train = _encoded(tokenizer, layout.corpus(cell) / "train.parquet", config.max_tokens)
    valid = _encoded(tokenizer, layout.corpus(cell) / "valid.parquet", config.max_tokens)
    directions_PDD = torch.stack([directions_LHDD[layer, head] for layer, head in chosen])
    initial = HeadCompensation(directions_PDD, chosen, initial_std=config.initial_std, seed=config.seed).to(device)
    runs: list[tuple[Trained, HeadCompensation]] = []
    for rate in config.learning_rates:
        candidate = copy.deepcopy(initial)
        title = f"compensate {cell.head_ratio} (lr {rate:g})"
        result = train_compensation(
            network, candidate, train, valid, config, learning_rate=rate, pad=tokenizer.pad_token_id or 0, title=title
        )
        runs.append((result, candidate))
    best, compensation = min(runs, key=lambda run: run[0].valid_loss)
    metadata = parents | {"model": cell.model, "heads": str(heads.heads), "layers": str(heads.layers)}
    metadata |= {"head_dim": str(heads.head_dim), "head_ratio": str(cell.head_ratio)}
    with published(layout, layout.compensation(cell), layout.training(cell)) as (tensors_path, training_path):
        write_tensors(tensors_path, _tensors(compensation, heads), metadata)
        write_json(training_path, _training(best, [result for result, _ in runs], chosen, train, valid))


def best_heads(table: Path, heads: HeadLayout, ratio: float) -> list[tuple[int, int]]:
    """The (layer, head) of the P best-ranked heads, best first."""
    count = chosen_count(ratio, heads)
    rows = sorted(read_table(table, HEADS), key=lambda row: row["rank"])
    if len(rows) != heads.total:
        raise BadInput(f"{table} ranks {len(rows)} heads, the model has {heads.total}: run `dvc repro`")
    return [(row["layer"], row["head"]) for row in rows[:count]]


def _checked_parents(cell: Cell, layout: Layout) -> dict[str, str]:
    """Digests of the inputs; refused unless heads, components and the pruned model belong together."""
    components = layout.components(cell)
    pruned = model_digest(layout.pruned(cell))
    recorded = read_tensors(components, ())[1]
    expect_digest("components were extracted for another pruned model", recorded.get("pruned"), pruned)
    of_heads = read_metadata(layout.heads(cell))
    expect_digest("heads were ranked with other components", of_heads.get("components"), file_digest(components))
    return {"pruned": pruned, "components": file_digest(components), "ranking": file_digest(layout.heads(cell))}


def _encoded(tokenizer: PreTrainedTokenizerBase, table: Path, max_tokens: int) -> list[EncodedPair]:
    rows = read_table(table, EXAMPLES)
    if not rows:
        raise BadInput(f"{table} holds no pair to train on: give more instruction pairs")
    return [encode_pair(tokenizer, row["question"], row["response"], max_tokens) for row in rows]


def _tensors(compensation: HeadCompensation, heads: HeadLayout) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return {
            "offset": compensation.offset_LHD(heads).cpu(),
            "heads": torch.tensor(compensation.heads, dtype=torch.int32),
            "beta": compensation.beta.detach().cpu(),
            "bias": compensation.bias.detach().cpu(),
        }


def _training(
    best: Trained,
    runs: list[Trained],
    chosen: list[tuple[int, int]],
    train: list[EncodedPair],
    valid: list[EncodedPair],
) -> dict:
    return {
        "learning_rate": best.learning_rate,
        "valid_loss": best.valid_loss,
        "runs": [asdict(run) for run in runs],
        "heads": chosen,
        "train_pairs": len(train),
        "valid_pairs": len(valid),
        "truncated": sum(pair.truncated for pair in train),
    }
