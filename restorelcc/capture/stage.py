"""Stages `capture_dense` and `capture_pruned`: head outputs at the question's and the responses' last tokens."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from restorelcc.capture.capture import Reading, capture_heads
from restorelcc.capture.config import CaptureConfig
from restorelcc.core.architectures import head_layout
from restorelcc.core.cell import Cell
from restorelcc.core.errors import BadInput
from restorelcc.core.model_entry import ModelEntry
from restorelcc.core.runtime import pick_device, pick_dtype, prepare
from restorelcc.core.text import EncodedPair, encode_pair
from restorelcc.io.activations import NEGATIVE, POSITIVE, QUESTION, write_layer
from restorelcc.io.checkpoints import load_model, load_tokenizer
from restorelcc.io.corpus_tables import CONTRAST
from restorelcc.io.digest import file_digest, model_digest
from restorelcc.io.layout import Layout
from restorelcc.io.scratch import published
from restorelcc.io.tables import read_table


def run_dense(cell: Cell, config: CaptureConfig, model: ModelEntry, layout: Layout) -> None:
    """Write <model>/activations/: roles question, positive and negative of the dense model."""
    _run(cell, config, model, layout, layout.dense(cell), layout.dense_activations(cell), with_responses=True)


def run_pruned(cell: Cell, config: CaptureConfig, model: ModelEntry, layout: Layout) -> None:
    """Write <model>/<pruning>/activations/: role question of the pruned model."""
    _run(cell, config, model, layout, layout.pruned(cell), layout.pruned_activations(cell), with_responses=False)


def _run(
    cell: Cell,
    config: CaptureConfig,
    model: ModelEntry,
    layout: Layout,
    checkpoint: Path,
    destination: Path,
    *,
    with_responses: bool,
) -> None:
    prepare(seed=0, threads=model.threads)
    device = pick_device(model.device)
    contrast = layout.corpus(cell) / "contrast.parquet"
    rows = read_table(contrast, CONTRAST)
    if not rows:
        raise BadInput(f"{contrast} holds no contrast tuple: raise corpus.contrast or give more instruction pairs")
    tokenizer = load_tokenizer(checkpoint)
    network = load_model(checkpoint, pick_dtype(model.dtype, device), device)
    title = f"capture {'dense' if with_responses else 'pruned'}"

    def capture(readings: list[Reading], part: str) -> list[list[Tensor]]:
        return capture_heads(
            network,
            readings,
            token_budget=config.token_budget,
            pad=tokenizer.pad_token_id or 0,
            title=f"{title} {part}",
        )

    positive = _encode(tokenizer, rows, "positive", config.max_tokens)
    roles: dict[str, list[Tensor]] = {}
    if with_responses:
        both = capture([Reading(p.ids, (p.question_tokens - 1, len(p.ids) - 1)) for p in positive], "positive")
        roles[QUESTION], roles[POSITIVE] = both
        negative = _encode(tokenizer, rows, "negative", config.max_tokens)
        (roles[NEGATIVE],) = capture([Reading(p.ids, (len(p.ids) - 1,)) for p in negative], "negative")
    else:
        question = [Reading(p.ids[: p.question_tokens], (p.question_tokens - 1,)) for p in positive]
        (roles[QUESTION],) = capture(question, "question")
    heads = head_layout(network)
    digests = {"model": cell.model, "checkpoint": model_digest(checkpoint), "text": file_digest(contrast)}
    with published(layout, destination) as (folder,):
        folder.mkdir()
        for layer in range(heads.layers):
            values = {role: z[layer] for role, z in roles.items()}
            write_layer(folder, layer, [row["sample_id"] for row in rows], values, heads, digests)


def _encode(tokenizer: PreTrainedTokenizerBase, rows: list[dict], response: str, max_tokens: int) -> list[EncodedPair]:
    return [encode_pair(tokenizer, row["question"], row[response], max_tokens) for row in rows]
