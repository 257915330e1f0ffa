"""Task files of a user's own that cannot work: each ends in one sentence that says what to correct."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from restorelcc.base.errors import BadInput
from restorelcc.stages.evaluate.tasks import load_tasks
from tests.stages.evaluate.own_tasks import rows, write_task

pytestmark = pytest.mark.usefixtures("known_tasks")

Items = list[dict[str, Any]]
GOOD = rows(3)


def second(**changes: Any) -> Items:
    """Items of which the second is changed."""
    return [GOOD[0], GOOD[1] | changes, GOOD[2]]


# what a task file has, its items, and what is said
REFUSED: dict[str, tuple[dict[str, Any], Items, str]] = {
    "a text that is no column": ({"doc_to_text": "questoin"}, GOOD, "doc_to_text: questoin, which is not a column of"),
    "a column in a template": ({"doc_to_text": "{{questoin}}"}, GOOD, "'questoin' is undefined"),
    "a column in a target": ({"doc_to_target": "{{nothere}}"}, GOOD, "'nothere' is undefined"),
    "choices that are no column": ({"doc_to_choice": "choicez"}, GOOD, "doc_to_choice is neither a column of its data"),
    "no split": ({"test_split": None}, GOOD, "names neither a test_split nor a validation_split: add one"),
    "a split that is not there": ({"test_split": "validation"}, GOOD, "no split or column 'validation'"),
    "a list of splits": ({"test_split": ["test"]}, GOOD, "has test_split: .*, where a text is expected"),
    "no text": ({"doc_to_text": None}, GOOD, "has no doc_to_text"),
    "no target": ({"doc_to_target": None}, GOOD, "has no doc_to_target"),
    "no such kind of output": ({"output_type": "multi"}, GOOD, "invalid output_type 'multi'"),
    "no such metric": ({"metric_list": [{"metric": "foo"}]}, GOOD, "lm-eval has no metric 'foo'"),
    "a template that does not end": ({"doc_to_text": "{{question"}, GOOD, "unexpected end of template"),
    "settings of data that are a list": ({"dataset_kwargs": ["a"]}, GOOD, "dataset_kwargs: .*, where a mapping is"),
    "shots in words": ({"num_fewshot": "two"}, GOOD, "num_fewshot: two, where a whole number is expected"),
    "a name that is a number": ({"task": 3}, GOOD, "has task: 3, where a name is expected: put it in quotes"),
    "a key that lm-eval does not know": ({"foo": 1}, GOOD, "unexpected keyword argument 'foo'"),
    "no choices": ({}, second(choices=[]), r"\(item 2\).*'choices' holds no choices"),
    "an empty choice": ({}, second(choices=["", "w5"]), r"\(item 2\).*choice 1 is empty"),
    "a label beyond the choices": ({}, second(gold=7), r"\(item 2\).*its answer is 7, and there are 2 choices"),
    "a question that is null": ({}, second(question=None), r"\(item 2\)"),
    "no item": ({}, [], "there is no item at all"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_task_that_cannot_work_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    changes, items, message = REFUSED[name]
    write_task(tmp_path / "tasks", "choice", items, **changes)
    with pytest.raises(BadInput, match=message) as caught:
        load_tasks([str(tmp_path / "tasks")], None, str(tmp_path / "cache"), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["- a\n", "", "task: [\n", "task: a\ntask: b\n  c: d\n"])
def test_what_is_no_task_file_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(content)
    for named in (tmp_path, tmp_path / "one.yaml"):
        with pytest.raises(
            BadInput, match=r"the task file .*one\.yaml of models\.<name>\.tasks cannot be read"
        ) as caught:
            load_tasks([str(named)], None, str(tmp_path / "cache"), tmp_path)
        assert "\n" not in str(caught.value)


def _moved(to: str) -> Callable[[Path], str]:
    def move(data: Path) -> str:
        (data.parent.parent / "shards").mkdir()
        data.rename(data.parent.parent / "shards" / "a.jsonl")
        return to

    return move


def _packed(data: Path) -> str:
    (data.parent / "items.jsonl.gz").write_bytes(gzip.compress(data.read_bytes()))
    return "tasks/items.jsonl.gz"


def _cut(data: Path) -> str:
    (data.parent / "items.jsonl.gz").write_bytes(gzip.compress(data.read_bytes())[:-9])
    return "tasks/items.jsonl.gz"


def _pointer(data: Path) -> str:
    data.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n")
    return "tasks/choice.jsonl"


@pytest.mark.parametrize(
    ("prepare", "refused"),
    [
        (_moved("shards"), None),
        (_moved("shards/*.jsonl"), None),
        (_packed, None),
        (_cut, "ended before the end"),
        (_pointer, r"choice\.jsonl is a pointer of Git LFS"),
        (lambda data: "tasks/gone.jsonl", "cannot be loaded"),
    ],
)
def test_data_of_a_task_may_be_a_folder_a_pattern_or_packed(
    prepare: Callable[[Path], str], refused: str | None, tmp_path: Path
) -> None:
    path = write_task(tmp_path / "tasks", "choice", GOOD)
    data = path.with_suffix(".jsonl")
    path.write_text(path.read_text().replace(str(data), prepare(data)))
    arguments = ([str(path.parent)], None, str(tmp_path / "cache"), tmp_path)
    if refused is None:
        assert len(list(load_tasks(*arguments)["tasks"]["choice"].eval_docs)) == 3
    else:
        with pytest.raises(BadInput, match=refused):
            load_tasks(*arguments)
