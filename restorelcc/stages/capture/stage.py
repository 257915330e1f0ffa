"""Stages `capture_dense` and `capture_pruned`: head outputs at the question's and the responses' last tokens."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from restorelcc.activations.store import NEGATIVE, POSITIVE, QUESTION, rows_at_once, stream_layer
from restorelcc.base.cell import Cell
from restorelcc.base.digest import file_digest, model_digest
from restorelcc.base.documents import read_document
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import ModelEntry
from restorelcc.base.progress import notice, progress
from restorelcc.base.publish import published
from restorelcc.base.tables import CONTRAST, read_table
from restorelcc.base.unfinished import kept_work, mark_of, work_name
from restorelcc.models.architectures import head_layout
from restorelcc.models.checkpoints import load_entry, load_tokenizer
from restorelcc.models.heads import HeadLayout
from restorelcc.models.runtime import (
    computed_with,
    map_on_all_cores,
    prepare,
    return_large_buffers,
    tokens_of_a_pass,
)
from restorelcc.models.text import EncodedContrast, context_length, encode_contrasts
from restorelcc.stages.capture import CaptureConfig
from restorelcc.stages.capture.capture import (
    Batch,
    HeadReader,
    Sample,
    plan,
    question_samples,
    read_batches,
    response_samples,
    why_not_joint,
)
from restorelcc.stages.capture.parts import PartReader, finished_part, write_part

LARGE_BUFFER = 2 * 2**20  # bytes; for smaller buffers, asking the system again would take longer than their use
_PARTS_FORMAT = 3  # raise when a batch's part would hold other numbers than before


def run_dense(cell: Cell, config: CaptureConfig, model: ModelEntry, layout: Layout) -> None:
    """Write <model>/activations/: roles question, positive and negative of the dense model."""
    roles = (QUESTION, POSITIVE, NEGATIVE)
    _run("dense", cell, config, model, layout, layout.dense(cell), layout.dense_activations(cell), roles)


def run_pruned(cell: Cell, config: CaptureConfig, model: ModelEntry, layout: Layout) -> None:
    """Write <model>/<pruning>/activations/: role question of the pruned model."""
    _run("pruned", cell, config, model, layout, layout.pruned(cell), layout.pruned_activations(cell), (QUESTION,))


def _run(
    kind: str,
    cell: Cell,
    config: CaptureConfig,
    model: ModelEntry,
    layout: Layout,
    checkpoint: Path,
    destination: Path,
    roles: tuple[str, ...],
) -> None:
    prepare(seed=0, threads=model.threads)
    return_large_buffers(LARGE_BUFFER)
    title = f"capture {kind}"
    contrast = layout.corpus(cell) / "contrast.parquet"
    rows = read_table(contrast, CONTRAST)
    tokenizer = load_tokenizer(checkpoint)
    network = load_entry(checkpoint, model, offload=layout.work)
    tuples = encode_rows(tokenizer, rows, contrast, context_length(network.config, config.max_tokens), title)
    samples = question_samples(tuples) if roles == (QUESTION,) else response_samples(tuples)
    pad = tokenizer.pad_token_id or 0
    reason = why_not_joint(network, samples, pad)
    if reason and roles != (QUESTION,):
        notice(title, f"question and responses run as separate sequences, which takes longer: {reason}")
    reader = HeadReader(network, pad=pad, joint=reason is None)
    metadata = {
        "model": cell.model,
        "checkpoint": model_digest(checkpoint),
        "text": file_digest(contrast),
        "tokens": _tokens_digest(tuples),
        "samples": str(len(samples)),
        "truncated": str(sum(each.truncated for each in tuples)),
        "dtype": str(network.dtype).removeprefix("torch."),
        **_parent(checkpoint),
        "responses": "none" if roles == (QUESTION,) else "joint" if reason is None else f"separate: {reason}",
    }
    name = work_name(f"capture_{kind}", cell)
    with kept_work(layout, name, _mark(metadata, config, reader)) as folder:
        batches = plan(samples, tokens_of_a_pass(network.device, config.token_budget), joint=reader.joint)
        parts = _captured(folder, reader, samples, batches, len(roles), title)
        heads = head_layout(network)
        ids = [row["sample_id"] for row in rows]
        with published(layout, destination) as (scratch,):
            write_activations(scratch, parts, batches, ids, roles, heads, metadata)


def _parent(checkpoint: Path) -> dict[str, str]:
    """Which dense model a pruned one was made from, where the prune stage has noted it."""
    report = checkpoint / "sparsity.json"
    dense = read_document(report).get("parents", {}).get("dense") if report.is_file() else None
    return {"dense": dense} if dense else {}


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict], table: Path, max_tokens: int, title: str
) -> list[EncodedContrast]:
    """Tokens of all contrast tuples; says how many questions were cut. Raises BadInput naming the table."""
    if not rows:
        raise BadInput(f"{table} holds no contrast tuple: raise corpus.contrast or give more instruction pairs")
    try:
        tuples = encode_contrasts(tokenizer, rows, max_tokens)
    except BadInput as error:
        raise BadInput(f"{table}: {error}") from error
    if cut := sum(each.truncated for each in tuples):
        notice(
            title, f"{cut} of {len(tuples)} questions lost tokens on the left, to fit in {max_tokens} with a response"
        )
    return tuples


def _tokens_digest(tuples: Sequence[EncodedContrast]) -> str:
    """Of every token id: dense and pruned activations with the same digest were read at the same tokens."""
    total = hashlib.sha256()
    for each in tuples:
        for ids in ([each.positive.question_tokens], each.positive.ids, each.negative.ids):
            total.update(np.array([len(ids), *ids], dtype=np.int64).tobytes())
    return total.hexdigest()


def _mark(metadata: dict[str, str], config: CaptureConfig, reader: HeadReader) -> str:
    """Of all that the bytes of a part, and which samples are in it, depend on."""
    network = reader.model
    computed = {"device": network.device.type, "joint": reader.joint} | computed_with()
    attention = network.config._attn_implementation
    return mark_of(metadata | config.model_dump() | computed | {"attention": attention, "format": _PARTS_FORMAT})


def _captured(
    folder: Path, reader: HeadReader, samples: list[Sample], batches: list[Batch], roles: int, title: str
) -> list[Path]:
    """The part file of every batch; those of an earlier run are not computed again."""
    heads = head_layout(reader.model)
    shapes = [(heads.layers, len(batch.samples), roles * heads.width) for batch in batches]
    found = {batch.number: finished_part(folder, batch.number, shapes[batch.number]) for batch in batches}
    paths = {number: path for number, path in found.items() if path is not None}
    missing = [batch for batch in batches if batch.number not in paths]
    if paths:
        notice(title, f"{len(paths)} of {len(batches)} batches are kept from a run that was stopped")
    bar = progress(None, title, "batches", total=len(batches), initial=len(paths))
    started, tokens = time.perf_counter(), 0
    for batch, z_LBRX in read_batches(reader, samples, missing):
        paths[batch.number] = write_part(folder, batch.number, z_LBRX.flatten(2).numpy())
        tokens += batch.tokens
        bar.set_postfix_str(f"{tokens / (time.perf_counter() - started):,.0f} tokens/s", refresh=False)
        bar.update()
    bar.close()
    return [paths[batch.number] for batch in batches]


def write_activations(
    folder: Path,
    parts: list[Path],
    batches: list[Batch],
    sample_ids: list[int],
    roles: Sequence[str],
    heads: HeadLayout,
    metadata: dict[str, str],
) -> None:
    """One Parquet file per layer, samples in their own order, from parts in the order of their length."""
    folder.mkdir()
    place = {number: (batch.number, row) for batch in batches for row, number in enumerate(batch.samples)}
    step = rows_at_once(len(roles), heads)

    def blocks(layer: int, reader: PartReader) -> Iterator[np.ndarray]:
        for start in range(0, len(sample_ids), step):
            block_BX = np.empty((min(step, len(sample_ids) - start), len(roles) * heads.width), dtype=np.float32)
            for offset, record in enumerate(block_BX):
                part, row = place[start + offset]
                reader.read(part, layer, row, record)
            yield block_BX.reshape(len(block_BX), len(roles), heads.width)

    with PartReader(parts) as reader:
        map_on_all_cores(
            lambda layer: stream_layer(folder, layer, sample_ids, roles, blocks(layer, reader), heads, metadata),
            range(heads.layers),
        )
