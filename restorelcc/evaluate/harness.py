"""Stock lm-eval on a model in memory; every item's result is kept."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from restorelcc.core.errors import BadInput
from restorelcc.evaluate.batches import budgeted_lm, token_budget, within_memory

_PREFERRED = ("acc", "exact_match", "em", "acc_norm")
_LONGEST = 2048  # tokens of one request


def run_harness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    loaded: dict[str, Any],
    *,
    batch_size: int | str,
    limit: int | None,
    seed: int,
) -> dict[str, Any]:
    """lm_eval.evaluate on tasks from `load_tasks`; without tasks the result is empty.

    batch_size: requests, or "auto" for as many as the token budget holds.
    """
    if not loaded:
        return {"samples": {}, "results": {}, "versions": {}}
    import random

    import numpy as np
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    def run(budget: int) -> dict[str, Any]:
        random.seed(seed)
        np.random.seed(seed)
        arguments: dict[str, Any] = {"pretrained": model, "tokenizer": tokenizer, "max_length": longest(model)}
        if batch_size == "auto":
            lm = budgeted_lm(HFLM, budget, **arguments)
        else:
            lm = HFLM(batch_size=batch_size, **arguments)
        # Any positive count of bootstrap_iters makes lm-eval report the closed-form stderr.
        results = evaluate(lm=lm, task_dict=loaded, limit=limit, bootstrap_iters=1, log_samples=True)
        assert results is not None
        return dict(results)

    if batch_size == "auto":
        return within_memory(run, token_budget(model))
    return run(0)


def longest(model: PreTrainedModel) -> int:
    """Tokens of the longest sequence: the model's context, at most 2,048."""
    return min(_LONGEST, getattr(model.config, "max_position_embeddings", _LONGEST))


def task_metrics(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{task: metric, value, stderr, n, version} of every leaf task; metric is `acc` where the task has it."""
    metrics = {}
    for task in sorted(results["samples"]):
        samples, values = results["samples"][task], results["results"][task]
        metric, filtered = main_metric(task, samples)
        metrics[task] = {
            "metric": metric,
            "value": values[f"{metric},{filtered}"],
            "stderr": values[f"{metric}_stderr,{filtered}"],
            "n": sum(sample["filter"] == filtered for sample in samples),
            "version": results["versions"].get(task),
        }
    return metrics


def main_metric(task: str, samples: list[dict[str, Any]]) -> tuple[str, str]:
    """(metric, filter) that stands for a task: acc, exact_match, em or acc_norm, whichever comes first.

    Raises BadInput for a task with none of them, where a mean over items, and so an interval, would not be defined.
    """
    for metric in _PREFERRED:
        for sample in samples[:1]:
            if metric in sample["metrics"]:
                return metric, sample["filter"]
    found = sorted({metric for sample in samples[:1] for metric in sample["metrics"]})
    raise BadInput(
        f"evaluation task {task!r} has no metric of {', '.join(_PREFERRED)} (it has {', '.join(found) or 'none'}): "
        "choose tasks with an accuracy per item"
    )


def item_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per item: task, item_id, digest of what was asked, gold, prediction, score, log-likelihood of choices."""
    rows = []
    for task in sorted(results["samples"]):
        metric, filtered = main_metric(task, results["samples"][task])
        samples = [sample for sample in results["samples"][task] if sample["filter"] == filtered]
        for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
            likelihoods = _likelihoods(sample["filtered_resps"])
            prediction = max(range(len(likelihoods)), key=likelihoods.__getitem__) if likelihoods else None
            rows.append(
                {
                    "task": task,
                    "item_id": sample["doc_id"],
                    "digest": _digest(sample),
                    "gold": _gold(sample["target"], len(likelihoods), prediction, float(sample[metric])),
                    "prediction": prediction,
                    "correct": float(sample[metric]) >= 0.5,
                    "score": float(sample[metric]),
                    "log_likelihoods": likelihoods,
                }
            )
    return rows


def _likelihoods(responses: list[Any]) -> list[float]:
    """Of a multiple-choice item; generated text has none."""
    return [float(response[0]) for response in responses if isinstance(response, tuple | list)]


def _digest(sample: dict[str, Any]) -> str:
    """Identity of an item: its document, its choices with their contexts, and its answer."""
    asked = "\x00".join([sample["doc_hash"], sample["target_hash"], repr(sample["arguments"])])
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def _gold(target: Any, choices: int, prediction: int | None, score: float) -> int | None:
    """Number of the right choice. Tasks that put it into the text give none: a right prediction, or the only other
    choice, tells it."""
    try:
        return int(target)
    except (TypeError, ValueError):
        if prediction is None:
            return None
        return prediction if score == 1 else (1 - prediction if choices == 2 else None)


def scratch_cache(work: Path) -> tempfile.TemporaryDirectory[str]:
    """A place for the datasets library to convert local files in; gone after the run."""
    work.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="datasets-", dir=work)
