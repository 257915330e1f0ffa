"""Stock lm-eval on a model in memory; every item's result is kept."""

from __future__ import annotations

import hashlib
from numbers import Integral
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from restorelcc.base.errors import BadInput
from restorelcc.base.progress import bars_named
from restorelcc.base.publish import Scratch
from restorelcc.models.config_facts import context_of_config
from restorelcc.models.text import context_length
from restorelcc.stages.evaluate.batches import LONGEST, budgeted_lm, token_budget, windowed, within_memory
from restorelcc.stages.evaluate.confined import sandboxed
from restorelcc.stages.evaluate.scoring import Scoring, number, standard_error
from restorelcc.stages.evaluate.shared_prefix import sharing
from restorelcc.stages.evaluate.statistics import MEAN
from restorelcc.stages.evaluate.tasks import FEWSHOT_SEED


def run_harness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    loaded: dict[str, Any],
    *,
    batch_size: int | str,
    limit: int | None,
    seed: int,
) -> dict[str, Any]:
    """lm_eval.evaluate on tasks from `load_tasks`, with their `scoring`; without tasks the result is empty.

    batch_size: requests, or "auto" for as many as the token budget holds.
    """
    if not loaded:
        return {"samples": {}, "results": {}, "versions": {}, "scoring": {}}
    check_room(loaded["tasks"], context_of(model))
    import random

    import lm_eval.api.model
    import lm_eval.api.task
    import numpy as np
    from lm_eval import evaluate
    from lm_eval.models import huggingface

    def run(budget: int) -> dict[str, Any]:
        random.seed(seed)
        np.random.seed(seed)
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(seed=FEWSHOT_SEED)  # a second try draws the examples of the first
        arguments: dict[str, Any] = {"pretrained": model, "tokenizer": tokenizer, "max_length": context_of(model)}
        arguments["softmax_dtype"] = "float32"  # as shared_prefix.py has it: bfloat16 would tie choices
        if batch_size == "auto":
            lm = budgeted_lm(windowed(sharing(huggingface.HFLM, budget)), budget, **arguments)
        else:
            lm = windowed(huggingface.HFLM)(batch_size=batch_size, **arguments)
        # No standard errors from lm-eval: it cannot bootstrap with few draws, and 100,000 take hours.
        bars = bars_named("evaluate", lm_eval.api.model, lm_eval.api.task, huggingface)
        with sandboxed(), bars:
            results = evaluate(
                lm=lm, task_dict=loaded, bootstrap_iters=0, log_samples=True, **asked_items(loaded, limit)
            )
        assert results is not None
        return dict(results) | {"scoring": loaded["scoring"]}

    if batch_size == "auto":
        return within_memory(run, token_budget(model))
    return run(0)


def asked_items(loaded: dict[str, Any], limit: int | None) -> dict[str, Any]:
    """Arguments of lm_eval.evaluate for the first `limit` items of every task, or as many as its own limit says."""
    own: dict[str, int | None] = loaded.get("limits", {})
    if not any(own.values()):
        return {"limit": limit}
    items = {name: len(task.eval_docs) for name, task in loaded["tasks"].items()}
    asked = {name: min(count, own[name] or limit or count) for name, count in items.items()}
    return {"samples": {name: range(count) for name, count in asked.items()}}


def context_of(model: PreTrainedModel) -> int:
    """Tokens of the longest request, as in stock lm-eval: the model's context, or 2,048 where it names none."""
    return context_of_config(model.config) or LONGEST


def longest(model: PreTrainedModel) -> int:
    """Tokens of the longest window of text: the model's context, at most 2,048."""
    return context_length(model.config, LONGEST)


def check_room(tasks: dict[str, Any], context: int) -> None:
    """Raises BadInput for a task that has the model write more than it can read, before any other is asked."""
    from lm_eval.models.utils import normalize_gen_kwargs

    for name, task in tasks.items():
        if task.config.output_type != "generate_until":
            continue
        new = normalize_gen_kwargs(dict(task.config.generation_kwargs or {}), 256)["max_gen_toks"]
        if new >= context:
            raise BadInput(
                f"evaluation task {name!r} has answers of up to {new} tokens, and the model reads {context} at most "
                "with the question: leave it out of models.<name>.tasks, or write a task with less max_gen_toks"
            )


def task_metrics(
    results: dict[str, Any], averaged: dict[str, bool] | None = None, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Of every leaf task the metric that stands for it, its value, standard error, number of items and version, and
    every metric that it has, of its first filter and, where there are several, of each.

    averaged: which of them count into the mean; None: those that `accuracies` finds.
    """
    averaged = accuracies(results) if averaged is None else averaged
    found = {}
    for task in sorted(results["samples"]):
        chosen = _scoring(results, task)
        by_filter = _every_metric(results, task, seed)
        metrics = by_filter[chosen.filter]
        found[task] = {
            "metric": chosen.metric,
            **metrics[chosen.metric],
            "n": sum(sample["filter"] == chosen.filter for sample in results["samples"][task]),
            "version": results["versions"].get(task),
            "averaged": averaged.get(task, False),
            "aggregation": chosen.way,
            "higher_is_better": chosen.higher_is_better,
            "shots": chosen.shots,
            "metrics": metrics,
        }
        if len(by_filter) > 1:
            found[task] |= {"filter": chosen.filter, "filters": by_filter}
    return found


def _every_metric(results: dict[str, Any], task: str, seed: int) -> dict[str, dict[str, dict[str, float | None]]]:
    """{filter: {metric: {value, stderr}}}."""
    items: dict[str, dict[str, list[Any]]] = {}
    for sample in results["samples"][task]:
        for metric in sample["metrics"]:
            items.setdefault(sample["filter"], {}).setdefault(metric, []).append(sample[metric])
    values, aggregations = results["results"][task], results["scoring"][task].aggregations
    return {
        filtered: {
            metric: {
                "value": number(values[f"{metric},{filtered}"]),
                "stderr": standard_error(aggregations.get(metric), of_items, seed),
            }
            for metric, of_items in by_metric.items()
        }
        for filtered, by_metric in items.items()
    }


def _scoring(results: dict[str, Any], task: str) -> Scoring:
    """Raises BadInput for a metric that the items turn out not to have, or not all of them."""
    chosen: Scoring = results["scoring"][task]
    for sample in results["samples"][task]:
        if chosen.metric not in sample["metrics"]:
            found = ", ".join(sample["metrics"]) or "none"
            raise BadInput(
                f"evaluation task {task!r} gives no {chosen.metric} for item {sample['doc_id']} (it has {found}): "
                "choose another metric, as {name: ..., metric: ...} in models.<name>.tasks"
            )
    return chosen


def accuracies(results: dict[str, Any]) -> dict[str, bool]:
    """Which tasks are measured by an accuracy: a mean over items that all lie in [0, 1], where more is better."""
    found = {}
    for task, samples in results["samples"].items():
        chosen = _scoring(results, task)
        scores = [chosen.per_item(sample[chosen.metric]) for sample in samples if sample["filter"] == chosen.filter]
        of_items = chosen.way == MEAN and chosen.higher_is_better
        found[task] = of_items and all(score is not None and 0 <= score[0] <= 1 for score in scores)
    return found


def item_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per item: task, item_id, digest of what was asked, gold, prediction, score, weight, log-likelihood of
    choices."""
    rows = []
    for task in sorted(results["samples"]):
        chosen = _scoring(results, task)
        samples = [sample for sample in results["samples"][task] if sample["filter"] == chosen.filter]
        for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
            likelihoods = _likelihoods(sample)
            prediction = max(range(len(likelihoods)), key=likelihoods.__getitem__) if likelihoods else None
            score, weight = chosen.per_item(sample[chosen.metric]) or (None, None)
            right = score is not None and chosen.way == MEAN and score >= 0.5
            told = prediction if chosen.metric == "acc" else None  # the score of another metric says nothing of it
            rows.append(
                {
                    "task": task,
                    "item_id": sample["doc_id"],
                    "digest": _digest(sample),
                    "gold": _gold(sample["target"], len(likelihoods), told, score),
                    "prediction": prediction,
                    "correct": right if chosen.way == MEAN else None,
                    "score": score,
                    "weight": weight,
                    "log_likelihoods": likelihoods,
                }
            )
    return rows


def _likelihoods(sample: dict[str, Any]) -> list[float]:
    """Of the choices of a multiple-choice item; generated text has none. For acc_mutual_info, lm-eval asks each choice
    without its question too, after all of them with it."""
    found = [float(response[0]) for response in sample["filtered_resps"] if isinstance(response, tuple | list)]
    return found[: len(found) // 2] if "acc_mutual_info" in sample["metrics"] else found


def _digest(sample: dict[str, Any]) -> str:
    """Identity of an item: its document, its choices with their contexts, and its answer."""
    asked = "\x00".join([sample["doc_hash"], sample["target_hash"], repr(sample["arguments"])])
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def _gold(target: Any, choices: int, prediction: int | None, score: float | None) -> int | None:
    """Number of the right choice. Tasks that put it into the text give none: a right prediction, or the only other
    choice, tells it. prediction: None where the score is not that of the likeliest choice."""
    if isinstance(target, Integral) or (isinstance(target, str) and target.isdecimal() and int(target) < choices):
        return int(target)
    if prediction is None or score is None:
        return None
    return prediction if score == 1 else (1 - prediction if choices == 2 else None)


def scratch_cache(work: Path) -> Scratch:
    """A place for the datasets library to convert local files in; gone after the run."""
    return Scratch(work, "datasets")
