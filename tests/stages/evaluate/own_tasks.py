"""Tiny task files of a user's own, one of every kind, over words that the pico tokenizer knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ITEMS = 12
_ACC = {"aggregation": "mean", "higher_is_better": True}
CHOICE = {"output_type": "multiple_choice", "doc_to_text": "question", "doc_to_choice": "choices"} | {
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc", **_ACC}, {"metric": "acc_norm", **_ACC}],
}
KINDS: dict[str, dict[str, Any]] = {
    "choice": CHOICE,
    "normed": CHOICE | {"metric_list": [{"metric": "acc_norm", **_ACC}, {"metric": "acc", **_ACC}]},
    "brier": CHOICE
    | {"metric_list": [{"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False}]},
    "classes": CHOICE
    | {
        "metric_list": [
            {"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True},
            {"metric": "f1", "aggregation": "f1", "higher_is_better": True},
            {"metric": "acc", **_ACC},
        ]
    },
    "written": {
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["w9"], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match", **_ACC, "ignore_case": True}],
    },
    "last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "question",
        "doc_to_target": "{{' ' + answer}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", **_ACC},
        ],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "question",
        "metric_list": [
            {"metric": name, "aggregation": way, "higher_is_better": False}
            for name, way in (
                ("word_perplexity", "weighted_perplexity"),
                ("byte_perplexity", "weighted_perplexity"),
                ("bits_per_byte", "bits_per_byte"),
            )
        ],
    },
}


def words(count: int, seed: int) -> str:
    return " ".join(f"w{3 + (seed * 17 + n * (7 + seed % 5)) % 60}" for n in range(count))


def rows(count: int = ITEMS) -> list[dict[str, Any]]:
    return [
        {"question": words(4 + n % 3, n), "choices": [words(1 + n % 2, n + 50), words(1, n + 91)], "gold": n % 2}
        | {"answer": words(1, n + 50)}
        for n in range(count)
    ]


def write_task(folder: Path, kind: str, items: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
    """folder/<kind>.yaml and its items; a change to None takes a key away."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{kind}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in (rows() if items is None else items)))
    task = {"task": kind, "dataset_path": "json", "test_split": "test"} | KINDS[kind] | {"metadata": {"version": 1.0}}
    task |= {"dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder.parent / "cache")}} | changes
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in task.items() if value is not None}))
    return path
