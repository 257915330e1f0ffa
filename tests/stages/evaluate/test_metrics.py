"""A task's own metric, every metric of it, and what a task file gets wrong: before any weight is read."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from restorelcc.base.documents import write_document
from restorelcc.base.errors import BadInput
from restorelcc.base.model_entry import ModelEntry
from restorelcc.stages.evaluate.harness import accuracies, item_rows, run_harness, task_metrics
from restorelcc.stages.evaluate.statistics import compare_ratios, sums_of
from restorelcc.stages.evaluate.tasks import Asked, load_tasks, selected_tasks
from tests import pico
from tests.stages.evaluate.own_tasks import CHOICE, ITEMS, KINDS, rows, write_task


def _results(folder: Path, **settings: Any) -> dict[str, Any]:
    loaded = load_tasks([Asked(str(folder), **settings)])
    return run_harness(pico.pico(), pico.word_tokenizer(), loaded, batch_size=4, limit=None, seed=0)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("metrics") / "tasks"
    for kind in KINDS:
        write_task(folder, kind)
    return _results(folder)


def test_the_first_metric_of_each_task_stands_for_it_and_all_are_kept(measured: dict[str, Any]) -> None:
    found = task_metrics(measured)
    firsts = {name: [each["metric"] for each in kind["metric_list"]] for name, kind in KINDS.items()}
    assert {name: task["metric"] for name, task in found.items()} == {name: own[0] for name, own in firsts.items()}
    assert {name: list(task["metrics"]) for name, task in found.items()} == {
        name: sorted(own, key=list(found[name]["metrics"]).index) for name, own in firsts.items()
    }
    for task in found.values():
        assert (task["n"], task["shots"]) == (ITEMS, 0)
        for each in task["metrics"].values():
            assert each["value"] is not None and each["stderr"] is not None and each["stderr"] >= 0


def test_only_accuracies_count_into_the_mean(measured: dict[str, Any]) -> None:
    counted = {name for name, counts in accuracies(measured).items() if counts}
    assert counted == {"choice", "normed", "written"}


def test_standard_errors_are_those_of_the_items(measured: dict[str, Any]) -> None:
    found, items = task_metrics(measured), item_rows(measured)
    for name in ("choice", "normed", "written", "brier"):
        scores = [row["score"] for row in items if row["task"] == name]
        assert found[name]["value"] == pytest.approx(np.mean(scores))
        assert found[name]["stderr"] == pytest.approx(np.std(scores, ddof=1) / math.sqrt(ITEMS))
    log_p = np.array([row["score"] for row in items if row["task"] == "last_word"])
    assert found["last_word"]["value"] == pytest.approx(math.exp(-log_p.mean()))
    # The delta method: d exp(-m) = exp(-m) dm. A bootstrap of 100 draws is within a third of it.
    expected = found["last_word"]["value"] * log_p.std(ddof=1) / math.sqrt(ITEMS)
    assert found["last_word"]["stderr"] == pytest.approx(expected, rel=0.33)


def test_a_perplexity_is_made_of_its_items(measured: dict[str, Any]) -> None:
    sums = sums_of(item_rows(measured), "rolling")
    assert sums is not None
    score_N, weight_N = sums
    assert task_metrics(measured)["rolling"]["value"] == pytest.approx(math.exp(-score_N.sum() / weight_N.sum()))
    assert weight_N.tolist() == [len(row["question"].split()) for row in rows()]
    same = compare_ratios([sums], [sums], "weighted_perplexity", samples=100, seed=0)
    assert (same["difference"], same["ci95"]) == (0.0, [0.0, 0.0])
    half = compare_ratios([sums], [(score_N / 2, weight_N)], "weighted_perplexity", samples=1000, seed=0)
    assert half["second"] == pytest.approx(math.sqrt(half["first"]))
    assert half["ci95"][0] < half["difference"] < half["ci95"][1] < 0


def test_a_metric_of_all_items_together_has_no_score_per_item(measured: dict[str, Any]) -> None:
    own = [row for row in item_rows(measured) if row["task"] == "classes"]
    assert {(row["score"], row["correct"]) for row in own} == {(None, None)}
    assert sums_of(own, "classes") is None


@pytest.mark.parametrize(
    ("kind", "metric", "averaged"), [("choice", "acc_norm", True), ("classes", "acc", True), ("last_word", "acc", True)]
)
def test_another_metric_of_the_task_can_be_chosen(tmp_path: Path, kind: str, metric: str, averaged: bool) -> None:
    write_task(tmp_path / "tasks", kind)
    results = _results(tmp_path / "tasks", metric=metric)
    task = task_metrics(results)[kind]
    assert (task["metric"], task["averaged"]) == (metric, averaged)
    assert task["value"] == task["metrics"][metric]["value"]
    assert task["value"] == pytest.approx(np.mean([row["score"] for row in item_rows(results)]))


def test_a_metric_that_the_task_does_not_have_is_refused_naming_those_it_has(tmp_path: Path) -> None:
    write_task(tmp_path / "tasks", "choice")
    with pytest.raises(
        BadInput, match=r"the metric 'exact_match' of task 'choice', which has acc, acc_norm: choose one"
    ):
        load_tasks([Asked(str(tmp_path / "tasks"), metric="exact_match")])


def test_a_declared_metric_that_no_item_has_is_not_the_first_one(tmp_path: Path) -> None:
    """lm-eval computes no perplexity of multiple-choice items, and says nothing of it."""
    listed = [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        CHOICE["metric_list"][0],
    ]
    write_task(tmp_path / "tasks", "choice", metric_list=listed)
    assert load_tasks([str(tmp_path / "tasks")])["scoring"]["choice"].metric == "acc"


def test_a_metric_that_lm_eval_cannot_aggregate_does_not_end_the_run(tmp_path: Path) -> None:
    listed = [*CHOICE["metric_list"], {"metric": "likelihood", "aggregation": "mean", "higher_is_better": True}]
    write_task(tmp_path / "tasks", "choice", metric_list=listed)
    task = task_metrics(_results(tmp_path / "tasks"))["choice"]
    assert task["metrics"]["likelihood"] == {"value": None, "stderr": None}
    assert task["value"] is not None


@pytest.mark.parametrize("first", ["acc", "acc_mutual_info"])
def test_choices_that_are_asked_without_their_question_too_are_no_more_choices(first: str, tmp_path: Path) -> None:
    means = {"aggregation": "mean", "higher_is_better": True}
    names = sorted(["acc", "acc_mutual_info"], key=lambda name: name != first)
    write_task(tmp_path / "tasks", "choice", metric_list=[{"metric": name, **means} for name in names])
    write_task(tmp_path / "plain", "choice")
    found, plain = (item_rows(_results(tmp_path / name)) for name in ("tasks", "plain"))
    assert [row["log_likelihoods"] for row in found] == [pytest.approx(row["log_likelihoods"]) for row in plain]
    assert [(row["prediction"], row["gold"]) for row in found] == [(row["prediction"], row["gold"]) for row in plain]
    assert {len(row["log_likelihoods"]) for row in found} == {2}


def test_of_several_filters_the_first_counts_and_all_are_kept(tmp_path: Path) -> None:
    first = [{"function": "regex", "regex_pattern": "(w[0-9]+)"}, {"function": "take_first"}]
    filters = [{"name": "strict", "filter": first}, {"name": "as-written", "filter": [{"function": "take_first"}]}]
    write_task(tmp_path / "tasks", "written", filter_list=filters)
    results = _results(tmp_path / "tasks")
    task = task_metrics(results)["written"]
    assert task["filter"] == "strict"
    assert set(task["filters"]) == {"strict", "as-written"}
    assert task["metrics"] == task["filters"]["strict"]
    assert len(item_rows(results)) == task["n"] == ITEMS


def test_shots_of_a_users_own_file_are_kept_and_those_of_tasks_of_lm_eval_are_asked_for(tmp_path: Path) -> None:
    data = {"test": str(tmp_path / "tasks" / "choice.jsonl"), "train": str(tmp_path / "train.jsonl")}
    examples = [row | {"question": "w60 w61"} for row in rows(6)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples))
    kwargs = {"data_files": data, "cache_dir": str(tmp_path / "cache")}
    path = write_task(tmp_path / "tasks", "choice", num_fewshot=2, training_split="train", dataset_kwargs=kwargs)
    results = _results(tmp_path / "tasks")
    assert task_metrics(results)["choice"]["shots"] == 2
    assert all(sample["arguments"][0][0].count("w60 w61") == 2 for sample in results["samples"]["choice"])
    again = _results(tmp_path / "tasks")
    assert [row["digest"] for row in item_rows(again)] == [row["digest"] for row in item_rows(results)]
    assert task_metrics(_results(tmp_path / "tasks", shots=0))["choice"]["shots"] == 0
    entry = ModelEntry.model_validate({"source": "some/model", "tasks": [{"name": str(path), "num_fewshot": 0}]})
    assert entry.tasks_document == [{"name": str(path), "num_fewshot": 0}], "nothing was said of trust"
    assert load_tasks(entry.tasks_document)["scoring"]["choice"].shots == 0
    with pytest.raises(BadInput, match=r"num_fewshot 7, and there are 6 examples in its split 'train'"):
        load_tasks([Asked(str(tmp_path / "tasks"), shots=7)])


def test_an_item_is_never_its_own_example(tmp_path: Path) -> None:
    write_task(tmp_path / "tasks", "choice", num_fewshot=1)
    with pytest.raises(BadInput, match=r"takes its examples from 'test', the split that it is evaluated on"):
        load_tasks([str(tmp_path / "tasks")])


def _broken(**changes: Any) -> list[dict[str, Any]]:
    items = rows()
    items[3] = items[3] | changes
    return items


@pytest.mark.parametrize(
    ("kind", "items", "changes", "message"),
    [
        (
            "choice",
            None,
            {"doc_to_text": "prompt"},
            r"has doc_to_text: prompt, which is not a column of its data \(question",
        ),
        (
            "choice",
            None,
            {"doc_to_text": "{{prompt}} ?"},
            r"cannot be set up \('prompt' is undefined\): correct the file",
        ),
        ("choice", None, {"doc_to_choice": "options"}, r"task 'choice' in .*choice\.yaml cannot be set up"),
        ("choice", None, {"test_split": None}, r"names neither a test_split nor a validation_split"),
        ("choice", None, {"test_split": "validation"}, r"its data have no split or column 'validation'"),
        ("choice", _broken(choices=[]), {}, r"'choice \(item 4\)' .*its column 'choices' holds no choices"),
        (
            "choice",
            _broken(gold=2),
            {},
            r"'choice \(item 4\)' .*its answer is 2, and there are 2 choices, counted from 0",
        ),
        ("choice", None, {"metric_list": [{"metric": "accuracyy"}]}, r"cannot be set up"),
        ("choice", None, {"output_type": "choices"}, r"cannot be set up .*output_type"),
        ("choice", None, {"unsafe_code": True}, r"runs code that a model wrote"),
        ("written", None, {"doc_to_target": "solution"}, r"has doc_to_target: solution, which is not a column"),
        ("written", [], {}, r"cannot be set up|cannot be loaded"),
    ],
)
def test_what_is_wrong_with_a_task_file_is_one_sentence(
    tmp_path: Path, kind: str, items: list[dict[str, Any]] | None, changes: dict[str, Any], message: str
) -> None:
    write_task(tmp_path / "tasks", kind, items, **changes)
    with pytest.raises(BadInput, match=message) as caught:
        load_tasks([str(tmp_path / "tasks")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"choices": []}, r"item 151\)' .*it has no choices"),
        ({"gold": 2}, r"item 151\)' .*its answer is 2, and there are 2 choices, counted from 0"),
        ({"gold": None}, r"item 151\)' .*doc_to_target: a value that it prints is null"),
        ({"question": None}, r"item 151\)' .*doc_to_text: a value that it prints is null"),
    ],
)
def test_templates_are_rendered_for_every_item(tmp_path: Path, broken: dict[str, Any], message: str) -> None:
    templates = {"doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}"}
    items = rows(160)
    write_task(tmp_path / "tasks", "choice", items, **templates)
    assert len(load_tasks([str(tmp_path / "tasks")])["tasks"]["choice"].eval_docs) == 160
    items[150] |= broken
    write_task(tmp_path / "tasks", "choice", items, **templates)
    with pytest.raises(BadInput, match=message):
        load_tasks([str(tmp_path / "tasks")])


def test_two_tasks_of_one_name_are_refused_with_both_files(tmp_path: Path) -> None:
    """In two folders, and in one; the same folder, or a folder and its part, are no two tasks."""
    folders = [tmp_path / "a", tmp_path / "b"]
    first, second = (write_task(folder, "choice") for folder in folders)
    with pytest.raises(BadInput, match=rf"two tasks with the name 'choice', of {first} and of {second}: rename"):
        load_tasks(list(map(str, folders)))
    write_task(tmp_path / "b", "written", task="choice")
    with pytest.raises(
        BadInput, match=rf"two tasks with the name 'choice', of {second} and of .*written\.yaml: rename"
    ):
        load_tasks([str(tmp_path / "b")])
    write_task(tmp_path / "a" / "more", "written")
    assert set(load_tasks([str(tmp_path / "a"), str(tmp_path / "a" / "more")])["tasks"]) == {"choice", "written"}


def test_code_at_second_hand_is_part_of_how_a_task_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tasks"
    path = write_task(folder, "written")
    path.write_text(path.read_text() + "process_results: !function score2h.results\n")
    (folder / "score2h.py").write_text(
        "def results(doc, found):\n    from judge2h import right\n    return {'exact_match': right(doc, found)}\n"
    )
    (folder / "judge2h.py").write_text("import json, deeper2h\ndef right(doc, found):\n    return deeper2h.YES\n")
    (folder / "deeper2h.py").write_text("YES = 1.0\n")
    (folder / "unasked.py").write_text("YES = 1.0\n")
    monkeypatch.syspath_prepend(str(folder))

    def digest() -> str:
        return load_tasks([Asked(str(folder), trusted=True)])["scoring"]["written"].config

    found = [digest()]
    (folder / "unasked.py").write_text("YES = 2.0\n")
    assert digest() == found[0]
    for name in ("judge2h", "deeper2h"):
        (folder / f"{name}.py").write_text((folder / f"{name}.py").read_text() + "# edited\n")
        found.append(digest())
    assert len(set(found)) == 3


def test_relative_data_files_count_from_the_projects_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kwargs = {"data_files": {"test": "tasks/choice.jsonl"}}
    write_task(tmp_path / "tasks", "choice", dataset_kwargs=kwargs)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = load_tasks([str(tmp_path / "tasks")], None, str(tmp_path / "cache"), tmp_path)
    assert len(loaded["tasks"]["choice"].eval_docs) == ITEMS


def test_relative_data_files_count_from_the_data_dir_where_that_is_given(tmp_path: Path) -> None:
    kwargs = {"data_dir": "there", "data_files": {"test": "choice.jsonl"}}
    write_task(tmp_path / "tasks", "choice", dataset_kwargs=kwargs)
    (tmp_path / "there").mkdir()
    lines = (tmp_path / "tasks" / "choice.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "there" / "choice.jsonl").write_text("".join(lines[:2]))
    (tmp_path / "choice.jsonl").write_text("".join(lines[:1]))
    loaded = load_tasks([str(tmp_path / "tasks")], None, str(tmp_path / "cache"), tmp_path)
    assert len(loaded["tasks"]["choice"].eval_docs) == 2


def test_a_folder_without_a_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    with pytest.raises(BadInput, match=r"holds no task: a task file is a \.yaml with at least task, dataset_path"):
        load_tasks([str(tmp_path / "tasks")])
    write_task(tmp_path / "tasks", "choice")
    (tmp_path / "tasks" / "broken.yaml").write_text("task: [unclosed")
    with pytest.raises(BadInput, match=r"the task file .*broken\.yaml of models.<name>.tasks cannot be read"):
        load_tasks([str(tmp_path / "tasks")])


def test_tasks_with_settings_come_from_the_models_entry(tmp_path: Path) -> None:
    listed = ["hellaswag", {"name": "arc_easy", "metric": "acc_norm", "num_fewshot": 5}, "paper-7"]
    write_document(tmp_path / "tasks.json", {"embedded": []})
    assert selected_tasks(tmp_path, listed[:2], tmp_path, "") == [Asked("hellaswag"), Asked("arc_easy", "acc_norm", 5)]
    with pytest.raises(BadInput, match=r"asks for 'arc_easy' twice, with metric acc_norm and with acc: keep one"):
        selected_tasks(tmp_path, listed, tmp_path, "")
    (tmp_path / "mine").mkdir()
    assert selected_tasks(tmp_path, ["mine"], tmp_path, "") == [Asked(str(tmp_path / "mine"))], "wherever one stands"
