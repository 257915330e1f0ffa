"""How a result was measured, with each part of it changed in turn."""

from __future__ import annotations

from dataclasses import fields, replace

from restorelcc.base.fingerprint import Fingerprint, TaskPrint

_WHOLE = {
    "lm_eval": "0.3.0",
    "dtype": "bfloat16",
    "limit": 7,
    "heldout": "other",
    "perplexity_tokens": 512,
    "context": 128,
    "tokenizer": "other",
}
_OF_TASK = {"metric": "acc_norm", "filter": "flexible", "averaged": False, "shots": 5, "fewshot_seed": 1} | {
    "version": "9.9",
    "config": "other",
    "items": "other",
    "prompts": "other",
}
# Part: what the sentence calls it.
SWAPS = {
    "lm_eval": "the version of lm-eval (",
    "dtype": "the dtype that the model computed in (",
    "limit": "evaluate.limit (",
    "heldout": "the held-out texts:",
    "perplexity_tokens": "evaluate.perplexity_tokens (",
    "context": "the model's context (",
    "tokenizer": "the tokenizer:",
    "metric": "the metric of task ",
    "filter": "the filter of task ",
    "averaged": "the place in the mean of task ",
    "shots": "the number of shots of task ",
    "fewshot_seed": "the seed of the shots of task ",
    "version": "the version of task ",
    "config": "the task file, or the code it calls, of task ",
    "items": "the items of task ",
    "prompts": "the prompts of task ",
    "tasks": "on which only the ",
}
assert set(SWAPS) == {part.name for kind in (Fingerprint, TaskPrint) for part in fields(kind)}


def swapped(fingerprint: Fingerprint, part: str) -> Fingerprint:
    """The same with one part changed; of the tasks that of the first."""
    if part in _WHOLE:
        return replace(fingerprint, **{part: _WHOLE[part]})
    name, *others = fingerprint.tasks
    if part == "tasks":
        return replace(fingerprint, tasks={other: fingerprint.tasks[other] for other in others})
    changed = replace(fingerprint.tasks[name], **{part: _OF_TASK[part]})
    return replace(fingerprint, tasks={name: changed} | {other: fingerprint.tasks[other] for other in others})
