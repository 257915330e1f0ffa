"""Metrics and details of a small grid, as the evaluate stages write them."""

from __future__ import annotations

from typing import Any

from restorelcc.base.cell import Cell
from restorelcc.base.documents import SCHEMA, write_document
from restorelcc.base.fingerprint import Fingerprint, TaskPrint
from restorelcc.base.layout import Layout
from restorelcc.base.tables import MEASURED, SAMPLES, write_table

CELLS = [Cell("a"), Cell("a", "wanda-0.5"), Cell("a", "wanda-0.5", "0.1"), Cell("a", "wanda-0.5", "0.25")]
MEANS = (0.95, 0.7, 0.8, 0.85)
LAYERS, HEADS = 3, 5
_TASK = TaskPrint(
    metric="acc",
    filter="none",
    averaged=True,
    shots=0,
    fewshot_seed=0,
    version="1.0",
    config="c0",
    items="i0",
    prompts="p0",
)
FINGERPRINT = Fingerprint(
    lm_eval="0.4.13",
    dtype="float32",
    limit=None,
    heldout="h0",
    perplexity_tokens=2048,
    context=2048,
    tokenizer="t0",
    tasks={"world_arc": _TASK, "world_rte": _TASK},
)
_TEXT = {"repetition": 0.1, "distinct_1": 0.2, "distinct_2": 0.5, "one_token": 0.0, "empty": 0.0}


def metrics(cell: Cell, mean: float) -> dict[str, Any]:
    share = (mean - 0.7) / 0.25
    content: dict[str, Any] = {"schema": SCHEMA, "model": cell.model, "pruning": cell.pruning}
    content["head_ratio"] = None if cell.head_ratio is None else float(cell.head_ratio)
    content["measured"] = FINGERPRINT.digest
    task = {"metric": "acc", "value": mean, "stderr": 0.01, "n": 400, "version": 1.0, "shots": 0, "averaged": True}
    task |= {"aggregation": "mean", "higher_is_better": True, "metrics": {"acc": {"value": mean, "stderr": 0.01}}}
    content |= {"tasks": {"world_arc": task, "world_rte": task}, "mean": mean}
    content["perplexity"] = {"corpus": "heldout", "tokens": 10, "value": 3.5}
    content["token_perplexity"] = {
        "corpus": "heldout",
        "sequence_length": 64,
        "blocks": 2,
        "tokens": 126,
        "value": 4.25,
    }
    content["word_perplexity"] = {"corpus": "heldout", "words": 9, "tokens": 10, "value": 7.5, "bytes": 40}
    content |= {"bits_per_byte": 0.9, "params_total": 1000, "params_nonzero": 600, "params_added": 64, "sparsity": 0.5}
    content |= {"file_bytes": 123456}
    content["generation"] = {"degenerate": False, "reasons": [], "kl_to_dense": 0.2, "top_token_agreement": 0.9} | {
        "greedy_agreement": 0.5
    }
    if cell.head_ratio:
        content["recovered"] = {"mean": share, "ci95": [share - 0.1, share + 0.1], "seeds": 1}
    return content


def details(cell: Cell, mean: float) -> dict[str, Any]:
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "seconds": {"load": 1.0, "total": 1.5},
        "versions": {"torch": "2.13.0"},
        "peak_memory_bytes": 3 * 10**8,
        "generation": {"greedy": _TEXT, "sampled": _TEXT},
    }
    content |= {"latency": {"seconds": 0.002, "rounds": 5}, "digests": {"model": "c0ffee" * 8}}
    content["continuations"] = [{"prompt": "one <b>", "greedy": "two & three", "sampled": "four"}]
    if cell.pruning and not cell.head_ratio:
        content["layers"] = [{"layer": layer, "sparsity": 0.5, "error": 0.1 * layer} for layer in range(LAYERS)]
    if cell.head_ratio:
        ranks = [[layer * HEADS + head for head in range(HEADS)] for layer in range(LAYERS)]
        chosen = [[0, 0], [0, 1]]
        content["heads"] = {"score": "paper", "scores": ranks, "ranks": ranks, "chosen": chosen}
        content["spectra"] = [[0.7, 0.2, 0.1]] * LAYERS
        content["latency"] |= {"pruned_seconds": 0.002, "ratio": 1.01}
        content["pooled"] = {"pruned": {"difference": mean - 0.7, "ci95": [0.05, 0.2], "n": 800, "p": 0.01}}
    return content


def write_grid(layout: Layout) -> None:
    for cell, mean in zip(CELLS, MEANS, strict=True):
        write_document(layout.metrics(cell), metrics(cell, mean))
        write_document(layout.details(cell), details(cell, mean))
        write_table(layout.samples(cell), [], SAMPLES, {MEASURED: FINGERPRINT.as_text()})
