"""The params.yaml of a work folder: whole paths for what was named from the current folder, and one default ratio."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from restorelcc.base.documents import parse_yaml
from restorelcc.base.errors import BadInput
from restorelcc.base.package_data import SOURCE
from restorelcc.cli.app import app
from restorelcc.models.checkpoints import save_checkpoint
from restorelcc.pipeline import oneshot
from restorelcc.pipeline.params import checked, load_params
from tests import pico
from tests.package import installed
from tests.stages.prune.project import words

ROWS = "\n".join(json.dumps({"prompt": words(5, n), "completion": words(3, 100 + n)}) for n in range(30))


class _Written(Exception):
    pass


@pytest.fixture
def request_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> oneshot.Request:
    """A request in a folder with pairs.jsonl, whose chain ends when params.yaml is about to be written."""

    def written(_root: Path, text: str) -> None:
        raise _Written(text)

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(oneshot, "write_project", written)
    Path("pairs.jsonl").write_text(ROWS)
    return oneshot.Request(
        dense="org/name", pruned=None, pruning="wanda-0.5", head_ratio=None, instructions="pairs.jsonl",
        calibration=None, work=tmp_path / "out.work",
    )  # fmt: skip


def _content(request: oneshot.Request, **changes: Any) -> dict[str, Any]:
    with pytest.raises(_Written) as text, oneshot.run_chain(replace(request, **changes)):
        pass
    content: dict[str, Any] = parse_yaml(str(text.value), "params.yaml")
    return content


def test_settings_that_name_files_and_folders_count_from_the_current_folder(request_here: oneshot.Request) -> None:
    here = Path.cwd()
    for name in ("hub/rte", "encoder", "my_tasks"):
        Path(name).mkdir(parents=True)
    Path("texts.txt").write_text("w3 w4\n")
    content = _content(
        request_here,
        tasks=("my_tasks", "arc_easy"),
        overrides=("evaluate.datasets=./hub", "corpus.encoder=encoder", "models.model.data.heldout=texts.txt"),
    )
    entry = content["models"]["model"]
    assert content["evaluate"]["datasets"] == str(here / "hub")
    assert content["corpus"]["encoder"] == str(here / "encoder")
    assert entry["tasks"] == [str(here / "my_tasks"), "arc_easy"]
    assert (entry["data"]["instructions"], entry["data"]["heldout"]) == (
        str(here / "pairs.jsonl"),
        str(here / "texts.txt"),
    )
    trusted = "models.model.tasks=[{name: my_tasks, trusted: true}]"
    content = _content(request_here, overrides=(trusted, "evaluate.datasets={rte: hub/rte}", "corpus.encoder=org/e5"))
    assert content["models"]["model"]["tasks"] == [{"name": str(here / "my_tasks"), "trusted": True}]
    assert content["evaluate"]["datasets"] == {"rte": str(here / "hub/rte")}
    assert content["corpus"]["encoder"] == "org/e5"
    for kept in ("auto", "null"):
        content = _content(request_here, overrides=(f"corpus.encoder={kept}", f"evaluate.datasets={SOURCE}"))
        assert content["evaluate"]["datasets"] == SOURCE
        assert content["corpus"]["encoder"] == {"auto": "auto", "null": None}[kept]
    with pytest.raises(BadInput, match=r"--set corpus\.encoder './gone' is not a folder"):
        _content(request_here, overrides=("corpus.encoder=./gone",))
    assert not request_here.work.exists() or not any(request_here.work.glob("params.yaml"))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("dataset_kwargs: {data_files: {test: my_tasks/quiz.jsonl}}", "my_tasks/quiz.jsonl"),
        ("dataset_kwargs: {data_dir: my_tasks, data_files: quiz.jsonl}", "my_tasks/quiz.jsonl"),
        ("dataset_kwargs: {data_files: {test: 'my_tasks/*.jsonl'}}", "my_tasks/quiz.jsonl"),
        ("dataset_path: json\ndataset_kwargs: {data_dir: my_tasks}", "my_tasks"),
        ("dataset_path: ./my_tasks", "my_tasks"),
        ("include: ../other/base", "rows.jsonl"),
    ],
)
def test_a_task_that_names_its_data_from_here_is_refused_before_anything_is_made(
    text: str, named: str, request_here: oneshot.Request
) -> None:
    for name in ("my_tasks", "other"):
        Path(name).mkdir()
    Path("my_tasks/quiz.yaml").write_text(f"task: quiz\n{text}\n")
    Path("my_tasks/quiz.jsonl").write_text("{}\n")
    Path("other/base").write_text("dataset_kwargs: {data_files: rows.jsonl}\n")
    with pytest.raises(BadInput, match="counts from a project's folder") as refused:
        _content(request_here, tasks=("my_tasks",))
    assert str(refused.value).startswith("--evaluate my_tasks: the task file my_tasks/quiz.yaml names its data") or (
        "other/base names its data" in str(refused.value)
    )
    assert str(refused.value).endswith(f"write the whole path, {Path.cwd() / named}")
    assert not request_here.work.exists()


def test_a_task_that_names_its_data_by_whole_paths_or_on_the_hub_is_taken(request_here: oneshot.Request) -> None:
    for folder in ("my_tasks", "json"):  # the second is no data: the first task's reader is called so
        Path(folder).mkdir()
    rows = Path("my_tasks/rows.jsonl").absolute()
    rows.write_text("{}\n")
    for number, text in enumerate(
        (
            f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {rows}}}}}",
            f"dataset_path: json\ndataset_kwargs: {{data_dir: {rows.parent}, data_files: rows.jsonl}}",
            "dataset_path: org/data\ndataset_kwargs: {data_dir: my_tasks}",
            "dataset_path: json\ndataset_kwargs: {data_files: 'https://host/rows.jsonl'}",
        )
    ):
        Path(f"my_tasks/{number}.yaml").write_text(f"task: t{number}\n{text}\n")
    assert _content(request_here, tasks=("my_tasks",))["models"]["model"]["tasks"] == [str(rows.parent)]


@pytest.mark.parametrize("method", ["heads", "every-bias", "random", "lofit"])
def test_every_method_that_chooses_heads_gets_the_same_share_unless_told_otherwise(
    method: str, request_here: oneshot.Request
) -> None:
    def ratio(**changes: Any) -> float:
        params = checked(_content(request_here, method=method, **changes))
        return float(params.grid.head_ratio[0] if params.grid.head_ratio else params.recover.head_ratio)

    assert (ratio(), ratio(head_ratio="0.3")) == (0.1, 0.3)


def test_the_package_of_data_is_a_source_for_restore_and_init(
    request_here: oneshot.Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path / "site", items=12)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    data = _content(request_here, instructions=f"self:{SOURCE}", calibration=SOURCE)["models"]["model"]["data"]
    assert data == {"instructions": f"self:{SOURCE}", "calibration": SOURCE, "heldout": SOURCE}
    data = _content(request_here, heldout=SOURCE)["models"]["model"]["data"]
    assert data["heldout"] == SOURCE and data["instructions"] == str(Path("pairs.jsonl").absolute())
    with pytest.raises(BadInput, match="'package:other' is not a package that restorelcc can read data from"):
        _content(request_here, instructions="package:other")
    save_checkpoint(tmp_path / "dense", pico.pico("opt"), pico.word_tokenizer())
    given = [part for role in ("calibration", "instructions", "heldout") for part in (f"--{role}", SOURCE)]
    done = CliRunner().invoke(
        app, ["init", str(tmp_path / "mine"), "--model", str(tmp_path / "dense"), *given], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    entry = load_params(tmp_path / "mine" / "params.yaml").models["mine"]
    assert entry.data is not None
    assert {entry.data.calibration, entry.data.instructions, entry.data.heldout} == {SOURCE}
