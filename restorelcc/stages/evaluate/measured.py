"""How a result was measured: makes the Fingerprint (base/fingerprint.py) by which results are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from restorelcc.base.fingerprint import Fingerprint, TaskPrint
from restorelcc.stages.evaluate.scoring import Scoring
from restorelcc.stages.evaluate.tasks import FEWSHOT_SEED


def how_without_tasks(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    *,
    dtype: torch.dtype,
    limit: int | None,
    perplexity_tokens: int,
    context: int,
) -> Fingerprint:
    """What is known before anything is computed: all but the tasks."""
    return Fingerprint(
        lm_eval=version("lm_eval"),
        dtype=str(dtype).removeprefix("torch."),
        limit=limit,
        heldout=_digest(texts),
        perplexity_tokens=perplexity_tokens,
        context=context,
        tokenizer=tokenizer_digest(tokenizer, texts),
        tasks={},
    )


def with_tasks(before: Fingerprint, results: dict[str, Any], averaged: dict[str, bool]) -> Fingerprint:
    """The same with the tasks, of results of `run_harness`."""
    return replace(before, tasks={task: _of_task(results, task, averaged[task]) for task in sorted(results["samples"])})


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> str:
    """Of the vocabulary, the special tokens and the token ids of the texts.

    Not of the files: a tokenizer that is loaded and saved again is the same one in other bytes.
    """
    vocabulary = sorted(tokenizer.get_vocab().items())
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    ids = tokenizer(texts)["input_ids"] if texts else []
    return _digest(map(repr, (vocabulary, special, ids)))


def _of_task(results: dict[str, Any], task: str, averaged: bool) -> TaskPrint:
    chosen: Scoring = results["scoring"][task]
    samples = [sample for sample in results["samples"][task] if sample["filter"] == chosen.filter]
    samples.sort(key=lambda sample: sample["doc_id"])
    return TaskPrint(
        metric=chosen.metric,
        filter=chosen.filter,
        averaged=averaged,
        shots=chosen.shots,
        fewshot_seed=FEWSHOT_SEED,
        version=str(results["versions"].get(task)),
        config=chosen.config,
        items=_digest(f"{s['doc_id']} {s['doc_hash']} {s['target_hash']}" for s in samples),
        prompts=_digest(repr(sample["arguments"]) for sample in samples),
    )


def _digest(parts: Iterable[str]) -> str:
    total = hashlib.sha256()
    for part in parts:
        content = part.encode()
        total.update(f"{len(content)} ".encode() + content)
    return total.hexdigest()[:16]
