"""The Prefect flow over the same DAG: as `dvc repro` would, with stages side by side, states and exit codes."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from flows.dag import Dag, Stage, read_dag
from flows.gates import gate
from flows.stage_process import StageError, _error
from restorelcc.pipeline.params import load_params
from restorelcc.pipeline.workspace import mend
from tests.flows.light import FEW, LightProject
from tests.flows.servers import migrated, wait_for

GRID = {"pruning": ["wanda-0.5"], "head_ratio": [0.25]}
FLOW = (sys.executable, "-m", "flows.restore")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def started(project: LightProject, kind: str) -> int:
    """Process number of a stage, once it runs."""

    def look() -> int | None:
        return next((pid for what, name, pid, _ in project.events() if what == "start" and name.startswith(kind)), None)

    found = wait_for(look, f"{kind} to start")
    assert isinstance(found, int)
    return found


def left_behind(project: LightProject) -> dict[int, str]:
    """Processes whose working folder is the project's or in it, and their command lines."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").resolve().is_relative_to(project.folder) and int(entry.name) != os.getpid():
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def kill_all(project: LightProject, what: str) -> None:
    """kill -9 of those whose command line has the word; of a fork before the process that waits for it and ends it."""
    found = left_behind(project)
    for pid in sorted(found, key=lambda pid: "forked.py" in found[pid]):
        if what in found[pid]:
            os.kill(pid, signal.SIGKILL)


# --- without a process: what can be seen at once


def stage(name: str, *needs: str, changed: bool = False) -> Stage:
    return Stage(name, needs, "cpu", None, changed)


def test_a_stage_is_clean_only_when_all_it_needs_is() -> None:
    dag = Dag((stage("a"), stage("b", "a", changed=True), stage("c", "b"), stage("d", "a")))
    assert dag.clean() == {"a", "d"}


@pytest.mark.parametrize(
    ("lines", "code", "bad_input", "transient"),
    [
        (["restorelcc: error: no such model", "ERROR: failed: restorelcc dense, exited with 2"], 1, True, False),
        (["restorelcc: failed: floor not reached", "ERROR: failed to run: x, exited with 1"], 1, False, False),
        (["ConnectionError: hub", "ERROR: failed to run: x, exited with 1"], 1, False, True),
        (["OutOfMemoryError: CUDA out of memory", "ERROR: failed to run: x, exited with 1"], 1, False, True),
        (["ERROR: failed to run: x, exited with -9"], 1, False, True),
        (["ERROR: failed to run: x, exited with 137"], 1, False, True),
        ([], -9, False, True),
        (["restorelcc: error: hub timed out", "ERROR: failed to run: x, exited with 2"], 1, True, False),
    ],
)
def test_what_is_worth_another_try(lines: list[str], code: int, bad_input: bool, transient: bool) -> None:
    error = _error("prune@x", code, lines)
    assert isinstance(error, StageError)
    assert (error.bad_input, error.transient) == (bad_input, transient)


def test_a_gate_lets_no_more_through_than_it_has_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setenv("RESTORELCC_GATES", str(tmp_path))
    inside, most = 0, 0
    lock = threading.Lock()

    def one() -> None:
        nonlocal inside, most
        with gate("cpu", 2):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.02)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2


def test_stages_have_the_same_names_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep reads the DAG of its clone, and a worker that of its job's, from the project's folder."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    project = LightProject(tmp_path / "project", GRID)
    monkeypatch.chdir(tmp_path)
    stages = read_dag(project.folder, load_params(project.folder / "params.yaml")).stages
    assert [each.name for each in stages if each.model is None] == ["report"]
    assert {"corpus@tiny", "compensate@tiny-wanda-0.5-0.25"} < {each.name for each in stages}
    assert {needed for each in stages for needed in each.needs} < {each.name for each in stages}


def test_bad_input_ends_before_anything_starts(tmp_path: Path) -> None:
    project = LightProject(tmp_path / "project", GRID)
    done = project.run(*FLOW, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert (done.code, "no Prefect server answers at http://127.0.0.1:9/api" in done.text) == (2, True), done.text
    project.set("grid.model", ["tinny"])
    done = project.run(*FLOW)
    assert (done.code, "'tinny' is unknown: did you mean 'tiny'" in done.text) == (2, True), done.text
    assert len(done.text.strip().splitlines()) == 1
    assert project.executed() == []


# --- with Prefect


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, prefect: dict[str, str]) -> LightProject:
    """A grid that was computed, and the shared Prefect server."""
    project = LightProject(tmp_path_factory.mktemp("flow") / "project", GRID, stages=FEW)
    project.environment |= prefect
    assert len(project.repro()) == len(FEW)
    return project


def copied(project: LightProject, folder: Path) -> LightProject:
    copy = project.copy(folder)
    copy.environment |= {name: value for name, value in project.environment.items() if name.startswith("PREFECT")}
    return copy


def test_without_a_server_the_flow_has_one_of_its_own_and_a_killed_stage_is_tried_again(
    project: LightProject, prefect_home: Path, tmp_path: Path
) -> None:
    copy = project.copy(tmp_path / "copy")
    copy.set("report.decimals", 5)
    killed = {"STANDIN_FAIL": '{"report": 137}', "STANDIN_FAIL_ONCE": str(tmp_path / "once")}
    home = migrated(tmp_path / "home", prefect_home)
    quick = {"RESTORELCC_RETRY_SECONDS": "0.1", "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false"}
    done = copy.run(*FLOW, PREFECT_HOME=str(home), **quick, **killed)
    assert done.code == 0, done.text[-3000:]
    assert "6 Unchanged, 1 Ran" in done.text
    assert copy.executed() == ["report", "report"]
    wait_for(lambda: not left_behind(copy), "no process left")
    assert copy.repro() == [], "dvc.lock says so too"


def test_what_check_refuses_by_its_name_ends_the_flow_before_a_stage_runs(
    project: LightProject, tmp_path: Path
) -> None:
    copy = copied(project, tmp_path / "copy")
    index = copy.folder / "lm_eval" / "tasks" / "__init__.py"  # lm-eval's own index takes ten seconds
    index.parent.mkdir(parents=True)
    index.parent.with_name("__init__.py").touch()
    index.write_text(
        "class TaskManager:\n    def __init__(self, include_path):\n        self.all_tasks = ['arc_easy']\n"
    )
    copy.set("models.tiny.tasks", ["arc_easi"])
    copy.set("dense.pretrain.seed", 8)
    done = copy.run(*FLOW)
    sentence = "models.tiny.tasks has 'arc_easi', which is no task that lm-eval knows, no preset and no folder: did you"
    assert (done.code, sentence in done.text) == (2, True), done.text[-2000:]
    assert copy.executed() == []


def test_an_emptied_lock_is_healed_and_nothing_computed_again(project: LightProject, tmp_path: Path) -> None:
    copy = copied(project, tmp_path / "copy")
    (copy.folder / "dvc.lock").write_text("")
    assert copy.run("dvc", "repro").code != 0
    done = copy.run(*FLOW)
    assert done.code == 0, done.text[-2000:]
    assert "6 Restored from the cache" in done.text
    assert copy.executed() == ["inputs@tiny"], "which looks at files; no result is computed"
    assert copy.artifacts() == project.artifacts()


def test_a_failing_stage_stops_what_needs_it_and_nothing_else(project: LightProject, tmp_path: Path) -> None:
    copy = copied(project, tmp_path / "copy")
    copy.set("grid.pruning", ["wanda-0.5", "wanda-0.6"])
    copy.set("evaluate.batch_size", 9)
    name = "prune@tiny-wanda-0.6"
    done = copy.run(*FLOW, STANDIN_FAIL=f'{{"{name}": 1}}')
    assert done.code == 1, done.text[-2000:]
    assert f"the stand-in was told to end {name} with 1" in done.text
    others = ["evaluate_dense@tiny", "evaluate_pruned@tiny-wanda-0.5", "inputs@tiny"]
    assert sorted(copy.executed()) == [*others, name], "and it is not tried again"
    assert "2 Skipped" in done.text
    assert copy.repro() == [name, "evaluate_pruned@tiny-wanda-0.6", "report"]


def test_bad_input_found_by_a_stage_is_not_tried_again(project: LightProject, tmp_path: Path) -> None:
    copy = copied(project, tmp_path / "copy")
    copy.set("report.decimals", 4)
    done = copy.run(*FLOW, STANDIN_FAIL='{"report": 2}')
    assert (done.code, copy.executed()) == (2, ["report"]), done.text[-2000:]


@pytest.mark.parametrize(
    ("number", "shell"),  # the first ends it as SIGINT does; with dash a shell stays between DVC and the stage
    [(signal.SIGTERM, "/bin/bash"), (signal.SIGKILL, "/bin/bash"), (signal.SIGKILL, "/bin/sh")],
)
def test_an_ended_flow_leaves_nothing_and_a_rerun_runs_only_what_is_missing(
    project: LightProject, tmp_path: Path, number: signal.Signals, shell: str
) -> None:
    copy = copied(project, tmp_path / "copy")
    copy.set("dense.pretrain.seed", 5)
    flow = copy.start(*FLOW, STANDIN_SECONDS="600", SHELL=shell)
    pid = started(copy, "dense")
    flow.send_signal(number)
    flow.communicate(timeout=600)
    wait_for(lambda: not alive(pid) and not left_behind(copy), f"no process left: {left_behind(copy)}")
    if number != signal.SIGKILL:
        assert flow.returncode == 130
    mend(copy.folder)  # as restorelcc does: where nobody reaps a killed process, DVC takes it for alive
    copy.repro()
    ended = [name.partition("@")[0] for what, name, *_ in copy.events() if what == "end"]
    assert sorted(ended) == ["dense", "evaluate_dense", "evaluate_pruned", "prune", "report"]


def test_two_flows_at_once_execute_every_stage_once(project: LightProject, tmp_path: Path) -> None:
    copy = copied(project, tmp_path / "copy")
    copy.set("evaluate.batch_size", 7)
    flows = [copy.start_fork(*FLOW, STANDIN_SECONDS="0.5") for _ in range(2)]
    for flow in flows:
        text, _ = flow.communicate(timeout=600)
        assert flow.returncode == 0, text[-2000:]
    ran = [name.partition("@")[0] for name in copy.executed()]
    assert sorted(name for name in ran if name != "inputs") == ["evaluate_dense", "evaluate_pruned", "report"]
