"""Stock lm-eval on a model in memory; every item's result is kept."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from restorelcc.core.errors import BadInput
from restorelcc.io.documents import read_json


def selected_tasks(folder: Path, cache: str) -> list[str | dict[str, Any]]:
    """What corpus/<model>/tasks asks for: the corpus's own task files as configs, and names for lm-eval to find."""
    listed = read_json(folder / "tasks.json")
    return [_own_task(folder / f"{name}.yaml", cache) for name in listed["embedded"]] + listed["lm_eval"]


def _own_task(path: Path, cache: str) -> dict[str, Any]:
    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    # The file's data path counts from the project's folder; here the data lie beside the file.
    task["dataset_kwargs"] = {"data_files": {"test": str(path.with_suffix(".parquet"))}, "cache_dir": cache}
    return task


def run_harness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: list[str | dict[str, Any]],
    *,
    batch_size: int,
    limit: int | None,
    seed: int,
) -> dict[str, Any]:
    """lm_eval.simple_evaluate, zero-shot; a task is a config, a name, or a folder of task files (all of its tasks).

    Without tasks the result is empty. Raises BadInput for a task that lm-eval does not know.
    """
    if not tasks:
        return {"samples": {}, "results": {}, "versions": {}}
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    folders = [task for task in tasks if isinstance(task, str) and Path(task).is_dir()]
    names = [task for task in tasks if isinstance(task, str) and task not in folders]
    try:
        manager = TaskManager(include_path=folders or None, include_defaults=bool(names))
        tasks = [task for task in tasks if task not in folders]
        if folders:
            tasks += TaskManager(include_path=folders, include_defaults=False).all_subtasks
        results = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=_longest(model)),
            tasks=tasks,
            task_manager=manager,
            limit=limit,
            num_fewshot=0,
            bootstrap_iters=1,  # any positive count makes lm-eval report the closed-form stderr
            log_samples=True,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
        )
    except KeyError as error:
        raise BadInput(f"evaluation task not known to lm-eval: {error.args[0]}") from error
    assert results is not None
    return results


def _longest(model: PreTrainedModel) -> int:
    return min(2048, getattr(model.config, "max_position_embeddings", 2048))


def task_metrics(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{task: metric, value, stderr, n, version} of every leaf task; metric is `acc` where the task has it."""
    metrics = {}
    for task in sorted(results["samples"]):
        values = results["results"][task]
        if "acc,none" not in values:
            raise BadInput(f"evaluation task {task!r} has no metric `acc`: choose multiple-choice tasks")
        metrics[task] = {
            "metric": "acc",
            "value": values["acc,none"],
            "stderr": values["acc_stderr,none"],
            "n": len(results["samples"][task]),
            "version": results["versions"].get(task),
        }
    return metrics


def item_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per item: task, item_id, gold, prediction, correct, log-likelihood of every choice."""
    rows = []
    for task in sorted(results["samples"]):
        for sample in sorted(results["samples"][task], key=lambda sample: sample["doc_id"]):
            likelihoods = [float(response[0]) for response in sample["filtered_resps"]]
            prediction = max(range(len(likelihoods)), key=likelihoods.__getitem__)
            rows.append(
                {
                    "task": task,
                    "item_id": sample["doc_id"],
                    "gold": int(sample["target"]),
                    "prediction": prediction,
                    "correct": bool(sample["acc"]),
                    "log_likelihoods": likelihoods,
                }
            )
    return rows


def scratch_cache(work: Path) -> tempfile.TemporaryDirectory[str]:
    """A place for the datasets library to convert local files in; gone after the run."""
    work.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="datasets-", dir=work)
