"""The grid on several workers: every distinct stage once, however it is run, and the same bytes."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
import yaml
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed

from flows import machines
from flows.dag import Dag, Stage
from flows.machines import waves
from flows.model_job import subset
from restorelcc.base.errors import BadInput
from tests.flows.light import LightProject

PYTHON = sys.executable
PREFECT = str(Path(PYTHON).parent / "prefect")


def stage(name: str, model: str | None, *needs: str) -> Stage:
    return Stage(name, needs, "cpu", model, True)


def test_what_the_models_share_comes_first_and_what_needs_them_all_last() -> None:
    dag = Dag(
        (
            stage("c4", None),
            stage("dense@a", "a", "c4"),
            stage("dense@b", "b", "c4"),
            stage("prune@a", "a", "dense@a"),
            stage("report", None, "prune@a", "dense@b"),
        )
    )
    assert waves(dag) == ({"c4"}, {"a": {"dense@a", "prune@a"}, "b": {"dense@b"}}, {"report"})
    own = subset(dag, {"dense@a", "prune@a"})
    assert [(one.name, one.needs) for one in own.stages] == [("dense@a", ()), ("prune@a", ("dense@a",))]


def test_jobs_are_cancelled_with_the_flow_that_started_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = []

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(machines, "get_run_logger", lambda: logging.getLogger())
    monkeypatch.setattr(machines, "_start_job", lambda deployment, job: f"run of {job['model']}")
    monkeypatch.setattr(machines, "_wait", interrupted)
    monkeypatch.setattr(machines, "_cancel", lambda run, why: cancelled.append(run))
    with pytest.raises(KeyboardInterrupt):
        machines._run_jobs("model-job/machines", [{"model": "a"}, {"model": "b"}], 1.0)
    assert cancelled == ["run of a", "run of b"]


def test_jobs_that_were_started_end_when_another_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = []

    def start(_: str, job: dict[str, str]) -> str:
        if job["model"] == "b":
            raise OSError("no server")
        return f"run of {job['model']}"

    monkeypatch.setattr(machines, "get_run_logger", lambda: logging.getLogger())
    monkeypatch.setattr(machines, "_start_job", start)
    monkeypatch.setattr(machines, "_cancel", lambda run, why: cancelled.append(run))
    with pytest.raises(OSError, match="no server"):
        machines._run_jobs("model-job/machines", [{"model": "a"}, {"model": "b"}], 1.0)
    assert cancelled == ["run of a"]


def test_a_job_whose_worker_does_not_end_it_counts_as_crashed(monkeypatch: pytest.MonkeyPatch) -> None:
    job, told = uuid4(), []

    @contextmanager
    def client(**_: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(read_flow_run=lambda _: run, set_flow_run_state=put)

    def put(_: object, state: State, force: bool = False) -> None:
        told.append((state.type.value, force))
        if force:
            run.state = state

    run = SimpleNamespace(state=None, start_time=datetime.now(UTC) - timedelta(hours=49))
    monkeypatch.setattr(machines, "get_client", client)
    monkeypatch.setattr(machines, "_POLL_SECONDS", 0)
    monkeypatch.setattr(machines, "_CANCEL_SECONDS", 0)
    ended = machines._wait(job, 48)
    assert told == [("CANCELLING", False)] * 3 + [("CRASHED", True)]
    assert machines._said(ended) == "Crashed took more than 48 hours, and its worker does not answer"


def test_time_in_the_queue_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker may have more jobs than fit into the hours of one."""
    waits, begun = SimpleNamespace(state=None, start_time=None), datetime.now(UTC) - timedelta(minutes=29)
    runs = SimpleNamespace(state=None, start_time=begun)
    seen = iter([waits, waits, runs, SimpleNamespace(state=Completed(), start_time=begun)])

    @contextmanager
    def client(**_: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(
            read_flow_run=lambda _: next(seen), set_flow_run_state=lambda *_, **__: pytest.fail("it was ended")
        )

    monkeypatch.setattr(machines, "get_client", client)
    monkeypatch.setattr(machines, "_POLL_SECONDS", 0)
    assert machines._wait(uuid4(), 0.5).state.is_completed()
    assert next(seen, None) is None


def test_a_token_in_the_address_is_refused_before_prefect_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "run_here", lambda *_, **__: pytest.fail("a flow has begun"))
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}),
        pytest.raises(BadInput, match="--repository holds a password or token"),
    ):
        machines.main("https://secret@host/x.git")


def test_who_commits_is_asked_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = LightProject(tmp_path / "project", stages=STAGES, code=())
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL", "EMAIL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    project.sh("git", "config", "user.useConfigOnly", "true")
    with pytest.raises(BadInput, match=r"set user\.name and user\.email, or give --no-commit"):
        machines.check_machines(project.folder, None, commit=True)
    (project.folder / ".dvcignore").write_text("x")
    with pytest.raises(BadInput, match=r"\.dvcignore is not committed"):
        machines.check_machines(project.folder, None)


def test_edited_data_is_committed_first_as_code_is(tmp_path: Path) -> None:
    """A worker's clone has the committed rows."""
    project = LightProject(tmp_path / "project", stages=STAGES, code=())
    for name in ("my rows.jsonl", "shards/1.jsonl"):
        (project.folder / name).parent.mkdir(exist_ok=True)
        (project.folder / name).write_text('{"text": "one"}\n')
    data = {"calibration": "shards", "instructions": "my rows.jsonl", "heldout": "wikitext"}
    project.set("models.mine", {"source": "org/name", "data": data})
    project.set("grid.model", ["mine"])
    (project.folder / "README.md").write_text("about it")
    (project.folder / "scripts").mkdir()
    (project.folder / "scripts" / "own.py").write_text("print()")
    for name in ("raw.csv.dvc", "extra.yaml"):  # of a dependency by `dvc add`, and of `vars`
        (project.folder / name).write_text("old: 1\n")
    pipeline = yaml.safe_load((project.folder / "dvc.yaml").read_text())
    elsewhere = ["/etc/hostname", "../../elsewhere.txt", "data/metrics/${item.model}/dense.json"]
    own = {"cmd": "python own.py", "wdir": "scripts", "deps": ["own.py", *elsewhere], "params": [{"own.yaml": None}]}
    pipeline["stages"]["own"] = own
    (project.folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    assert {"scripts/own.py", "scripts/own.yaml"} <= set(machines.read_by_stages(project.folder))
    project.commit("data")
    (project.folder / "dvc.lock").write_text("schema: '2.0'\n")
    project.commit("lock")
    (project.folder / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    (project.folder / "notes.txt").write_text("in no commit, and no code")
    (project.folder / "README.md").write_text("an edit of what no stage reads")
    with pytest.raises(BadInput, match="no remote is configured"):
        machines.check_machines(project.folder, None)
    (project.folder / "scripts/own.py").write_text("print('edited')")
    with pytest.raises(BadInput, match=r"^scripts/own\.py is not committed, but workers run committed revisions"):
        machines.check_machines(project.folder, None)
    project.sh("git", "checkout", "--quiet", "scripts")
    for name in ("raw.csv.dvc", "extra.yaml"):
        (project.folder / name).write_text("new: 1\n")
        with pytest.raises(BadInput, match=rf"^{name} is not committed, but workers run committed revisions"):
            machines.check_machines(project.folder, None)
        project.sh("git", "checkout", "--quiet", name)
    shard = project.folder / "shards" / "2.jsonl"
    shard.write_text('{"text": "new"}\n')
    with pytest.raises(BadInput, match=r"shards/2\.jsonl is not committed, but workers run committed revisions"):
        machines.check_machines(project.folder, None)
    shard.unlink()
    (project.folder / "my rows.jsonl").write_text('{"text": "two"}\n')
    with pytest.raises(BadInput, match=r"^my rows\.jsonl is not committed, but workers run committed revisions"):
        machines.check_machines(project.folder, None)


GRID = {"pruning": ["wanda-0.5"], "head_ratio": [0.25]}
STAGES = ("inputs", "corpus", "dense", "evaluate_dense", "report")


def deployed(project: LightProject) -> None:
    """The project's deployments, in place of any other project's, on the server that it uses."""
    environment = {"RESTORELCC_ROOT": str(project.folder)}
    project.sh(PREFECT, "work-pool", "create", "--type", "process", "--overwrite", "restorelcc", **environment)
    project.sh(PREFECT, "--no-prompt", "deploy", "--prefect-file", "flows/prefect.yaml", "--all", **environment)


def test_repro_flow_dask_and_two_machines_run_every_stage_once_and_give_the_same_bytes(
    tmp_path: Path, prefect: dict[str, str]
) -> None:
    first = LightProject(tmp_path / "repro", GRID, models=2, stages=STAGES)
    four_ways(first, tmp_path, prefect, nodes=2 * 4 + 1)


def four_ways(first: LightProject, tmp_path: Path, prefect: dict[str, str], nodes: int, again: bool = False) -> None:
    """A grid by `dvc repro`, the flow, two Dask workers, and two workers with clones of their own."""
    flow, dask, head = others = [first.copy(tmp_path / name) for name in ("flow", "dask", "machines")]
    first.repro()
    assert set(Counter(first.executed()).values()) == {1}
    assert len(first.executed()) == nodes
    done = flow.run(PYTHON, "-m", "flows.restore", "--parallel", "4", **prefect)
    assert done.code == 0, done.text[-3000:]
    done = dask.run(PYTHON, "-m", "flows.restore", "--dask", "2", **prefect)
    assert done.code == 0, done.text[-3000:]
    on_machines(head, tmp_path, prefect, again)
    for project in others:
        assert computed(project) == computed(first), project.folder.name
    expected = first.results()
    assert flow.results() == expected
    assert dask.results() == expected
    on_head = {name: content for name, content in head.results().items() if not name.startswith("inputs/")}
    assert {name for name in expected if name.startswith(("metrics/", "report/"))} == on_head.keys()
    assert on_head == {name: expected[name] for name in on_head}

    fresh = head.clone(tmp_path / "fresh")
    assert fresh.restorelcc("pull").code == 0
    assert fresh.repro() == []
    assert fresh.results() == expected


def computed(project: LightProject) -> list[str]:
    """Every execution but of `inputs`, which looks at files; on a machine the job itself does that."""
    return sorted(name for name in project.executed() if not name.startswith("inputs@"))


def on_machines(project: LightProject, folder: Path, prefect: dict[str, str], again: bool) -> None:
    """Two workers, each with clones of its own (one log), a folder as remote; `again`: a second run does nothing."""
    assert project.restorelcc("share", str(folder / "remote")).code == 0
    project.commit("share")
    models = project.params()["grid"]["model"]
    before = project.environment
    project.environment = before | prefect
    with ExitStack() as stack:
        deployed(project)
        for number in range(2):
            start = (PREFECT, "worker", "start", "--pool", "restorelcc", "--limit", "1")
            clones, log = str(folder / f"clones-{number}"), folder / f"worker-{number}.log"
            stack.enter_context(project.background(*start, log=log, RESTORELCC_CLONES=clones))
        done = project.run(PYTHON, "-m", "flows.machines")
        assert done.code == 0, done.text[-3000:] + (folder / "worker-0.log").read_text()[-3000:]
        assert len(list(folder.glob("clones-*/*/*/.git"))) == len(models)
        if again:
            ran = len(project.executed())
            done = project.run(PYTHON, "-m", "flows.machines")
            assert done.code == 0, done.text[-3000:]
            assert len(project.executed()) == ran
    project.set("report.decimals", 3)
    done = project.run(PYTHON, "-m", "flows.machines")
    assert (done.code, "params.yaml is not committed" in done.text) == (2, True), done.text
    project.set("report.decimals", json.loads(project.sh("git", "show", "HEAD:params.yaml"))["report"]["decimals"])
    project.environment = before
