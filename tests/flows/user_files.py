"""A model with files of a user's own, outside the project: data, tasks, weights, a checkpoint pruned elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MODEL = "mine"
PRUNINGS = ("wanda-0.5", "external-theirs")
RATIO = 0.25


def write_user_files(home: Path) -> None:
    """The folder of a user: whatever params.yaml can name."""
    for name in ("calibration", "heldout"):
        _rows(home / f"{name}.jsonl", [{"text": f"a text of {name}, number {row}"} for row in range(20)])
    _rows(home / "pairs.jsonl", [{"question": f"what is {row}?", "response": f"it is {row}"} for row in range(60)])
    for name in ("dense", "theirs"):
        folder = home / name
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(name.encode() * 100)
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            (folder / file).write_text(json.dumps({"of": name, "file": file}))
        (folder / "README.md").write_text("read by people")
    _write_tasks(home)
    encoder = home / "encoder"
    (encoder / "1_Pooling").mkdir(parents=True)
    (encoder / "model.safetensors").write_bytes(b"encoder")
    (encoder / "1_Pooling" / "config.json").write_text("{}")
    _rows(home / "copies" / "arc_easy" / "validation.jsonl", [{"question": "?"}])


def _write_tasks(home: Path) -> None:
    tasks = home / "tasks"
    _rows(tasks / "items.jsonl", [{"question": "one?", "choices": ["yes", "no"], "gold": 0}])
    _rows(home / "elsewhere" / "more.jsonl", [{"question": "two?", "choices": ["yes", "no"], "gold": 0}])
    (home / "shared.yaml").write_text("output_type: multiple_choice\ndoc_to_target: gold\n")
    (tasks / "utils.py").write_text("def shown(document):\n    return document['question']\n")
    (tasks / "one.yaml").write_text(
        f"include: ../shared.yaml\ntask: one\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tasks}/items.jsonl}}}}\ntest_split: test\n"
        "doc_to_text: !function utils.shown\ndoc_to_choice: choices\n"
        "metric_list:\n  - metric: acc\n"
    )
    (tasks / "two.yaml").write_text(
        f"include: [../shared.yaml, ../functions/base.yaml]\ntask: two\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: 'file://{home}/elsewhere/more.jsonl'}}}}\ntest_split: test\n"
        "doc_to_text: question\ndoc_to_choice: choices\n"
    )
    functions = home / "functions"
    functions.mkdir()
    (functions / "base.yaml").write_text("process_docs: !function helpers.process\n")
    (functions / "helpers.py").write_text("from more import clean\n")
    (functions / "more.py").write_text("def clean(text):\n    return text\n")
    (tasks / "README.md").write_text("read by people")


def _rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def user_params(params: dict[str, Any], home: Path) -> dict[str, Any]:
    """params.yaml with the user's model in place of the others."""
    entry = {
        "source": str(home / "dense"),
        "data": {role: str(home / f"{role}.jsonl") for role in ("calibration", "heldout")}
        | {"instructions": str(home / "pairs.jsonl")},
        "tasks": ["arc_easy", {"name": str(home / "tasks"), "trusted": True}],
    }
    return params | {
        "models": {MODEL: entry},
        "grid": {"model": [MODEL], "pruning": list(PRUNINGS), "head_ratio": [RATIO], "recovery": [], "speed": []},
        "corpus": params["corpus"] | {"encoder": str(home / "encoder")},
        "prune": params["prune"] | {"external": {MODEL: {"theirs": {"source": str(home / "theirs")}}}},
        "evaluate": params["evaluate"] | {"datasets": str(home / "copies")},
    }
