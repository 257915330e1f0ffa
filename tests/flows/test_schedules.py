"""Sweeps, deployments and schedules on a Prefect server of the test's own."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from prefect import Flow
from prefect.exceptions import ParameterTypeError
from prefect.server.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import serve
from flows.clones import committed_revision, fresh_clone, git, write_grid
from flows.machines import machines
from flows.model_job import model_job
from flows.restore import restore
from flows.serve import nightly
from flows.sweep import check_sweep, keep, prepare
from flows.sweep import main as sweep_main
from flows.sweep import sweep as sweep_flow
from restorelcc.base.errors import BadInput
from restorelcc.pipeline.params import load_params
from restorelcc.pipeline.scaffold import new_project
from restorelcc.pipeline.workspace import mend
from tests.dag import ROOT
from tests.flows.light import FEW, LightProject
from tests.flows.servers import wait_for
from tests.flows.test_machines import deployed
from tests.flows.test_restore import alive, kill_all, left_behind

PYTHON = sys.executable
PREFECT = str(Path(PYTHON).parent / "prefect")
SWEEP = (PYTHON, "-m", "flows.sweep")
SHIPPED = ROOT / "params.yaml"
GRID = {"pruning": ["wanda-0.5"], "head_ratio": [0.25]}

BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": ["tinny"]}, "'tinny' is unknown: did you mean 'tiny'"),
    ({"model": []}, "the sweep's axis model is empty"),
    ({"pruning": ["wanda-2of1"]}, "N must be at least 1 and less than M"),
    ({"head_ratio": [0]}, "grid.head_ratio has 0"),
    ({"head_ratio": []}, "the sweep's axis head_ratio is empty"),
    ({"head_ratio": [0.1, 0.1]}, "grid.head_ratio has 0.1 twice"),
    ({"recovery": ["lroa"]}, "did you mean 'lora'"),
    ({"name": "a b"}, "the sweep's name is 'a b'"),
    ({"revision": "nowhere"}, "has no commit 'nowhere'"),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> LightProject:
    return LightProject(tmp_path_factory.mktemp("sweep") / "project", GRID)


@pytest.mark.parametrize(("given", "sentence"), BAD)
def test_a_bad_sweep_is_one_sentence(project: LightProject, given: dict[str, Any], sentence: str) -> None:
    grid = {axis: given.get(axis) for axis in ("model", "pruning", "head_ratio", "recovery")}
    with pytest.raises(BadInput) as caught:
        check_sweep(project.folder, grid, given.get("name", "sweep"), given.get("revision", "HEAD"))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sweep_times_those_of_its_head_ratios_that_are_timed(tmp_path: Path) -> None:
    content = yaml.safe_load(SHIPPED.read_text())
    content["grid"] |= {"head_ratio": [0.1, 0.25], "speed": [0.1, 0.25]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / ".dvc").mkdir()
    _committed(tmp_path)
    for given, timed in (([0.25, 0.5], [0.25]), ([0.5], []), (None, [0.1, 0.25])):
        grid = {"pruning": ["wanda-0.6"], "head_ratio": given}
        check_sweep(tmp_path, grid, "sweep", "HEAD")
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
        write_grid(tmp_path, grid)
        assert load_params(tmp_path / "params.yaml").grid.speed == tuple(timed)


def test_a_sweep_reads_numbers_as_the_file_means_them(tmp_path: Path) -> None:
    """Of YAML 1.2, in which 1e-3 is a number; PyYAML takes it for text."""
    text = SHIPPED.read_text().replace("learning_rates: [0.03]", "learning_rates: [1e-3]")
    text = text.replace("  speed: []", "  speed: [1e-1]")
    assert "[1e-3]" in text and "[1e-1]" in text
    (tmp_path / "params.yaml").write_text(text)
    (tmp_path / ".dvc").mkdir()
    _committed(tmp_path)
    grid = {"pruning": ["wanda-0.6"], "head_ratio": [0.1]}
    check_sweep(tmp_path, grid, "sweep", "HEAD")
    write_grid(tmp_path, grid)
    written = load_params(tmp_path / "params.yaml")
    assert written.section("tiny", "compensate").learning_rates == (0.001,)
    assert written.grid.speed == (0.1,)


def test_an_axis_of_a_sweep_takes_the_place_of_one_under_its_former_name(tmp_path: Path) -> None:
    content = yaml.safe_load(SHIPPED.read_text())
    content["grid"]["baseline"] = content["grid"].pop("recovery")
    content["baseline"] = content.pop("recover")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    write_grid(tmp_path, {"recovery": ["lora"]})
    assert "baseline" not in (tmp_path / "params.yaml").read_text()
    assert load_params(tmp_path / "params.yaml").grid.recovery == ("lora",)


def _committed(folder: Path) -> None:
    git = ("git", "-C", str(folder), "-c", "user.name=me", "-c", "user.email=me@x")
    for command in (("init", "-q"), ("add", "."), ("commit", "-qm", "one")):
        subprocess.run([*git, *command], check=True)


@pytest.mark.parametrize("within", [".", "models/a, b #1"])
def test_a_killed_clone_is_made_anew_and_the_users_folder_left_alone(tmp_path: Path, within: str) -> None:
    """git takes a half-made clone for a folder of the repository around it."""
    top = tmp_path / "team"
    root = top / within
    root.mkdir(parents=True)
    subprocess.run(["git", "init", "--quiet", str(top)], check=True)
    new_project(root)
    _committed(top)
    with (root / "params.yaml").open("a") as file:
        file.write("# not committed yet\n")
    left = root / ".work" / "sweeps" / "night"
    (left / ".git").mkdir(parents=True)
    grid = {"pruning": ["wanda-0.6"], "head_ratio": None}
    clone = prepare(root, grid, "night", check_sweep(root, grid, "night", "HEAD"))
    assert clone == left / within and load_params(clone / "params.yaml").grid.pruning == ("wanda-0.6",)
    assert (root / "params.yaml").read_text().endswith("# not committed yet\n")
    branch = subprocess.run(["git", "branch", "--show-current"], cwd=root, capture_output=True, check=True)
    assert branch.stdout.strip() != b"", "its branch is checked out as before"
    with Repo(str(clone)) as repo:
        assert Path(repo.cache.local.path) == root / ".dvc" / "cache" / "files" / "md5"
    (left / "kept").write_text("artifacts stay")
    prepare(root, grid, "night", check_sweep(root, grid, "night", "HEAD"))
    assert (left / "kept").is_file()


def test_a_sweep_keeps_its_pipeline_whatever_else_the_repository_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of `dvc add` that the grid does not name, and a pipeline in another folder, are not in the clone."""
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "me")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "me@x")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    root = tmp_path / "team" / "models"
    (root / "elsewhere").mkdir(parents=True)
    (root / "params.yaml").write_text("x: 1\n")
    copied = {"cmd": "cp params.yaml ours.txt", "deps": ["params.yaml"], "outs": ["ours.txt"]}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"ours": copied}}))
    theirs = {"cmd": "echo theirs > theirs.txt", "deps": ["../unnamed.jsonl"], "outs": ["theirs.txt"]}
    (root / "elsewhere" / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"theirs": theirs}}))
    (root / "unnamed.jsonl").write_text("{}")
    subprocess.run(["git", "init", "--quiet", str(root.parent)], check=True)
    with Repo.init(str(root), subdir=True) as repo:
        repo.add(str(root / "unnamed.jsonl"))
    _committed(root.parent)
    commit = committed_revision(root)
    clone = fresh_clone(str(root.parent), tmp_path / "clone", commit) / "models"
    (clone / "params.yaml").write_text("x: 2\n")
    monkeypatch.chdir(clone)
    with Repo() as repo:
        repo.reproduce()
    keep(root, clone, "night")
    saved = git(root, "show", f"refs/exps/{commit[:2]}/{commit[2:]}/night:./dvc.lock")
    assert hashlib.md5(b"x: 2\n").hexdigest() in saved and "theirs" not in saved
    assert git(root, "show", f"refs/exps/{commit[:2]}/{commit[2:]}/night:./params.yaml") == "x: 2"


def test_flows_run_the_project_that_one_is_in(tmp_path: Path) -> None:
    new_project(tmp_path / "mine")
    (tmp_path / "mine" / "deep").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "RESTORELCC_ROOT"}
    for folder, expected in ((tmp_path / "mine", tmp_path / "mine"), (tmp_path / "mine" / "deep", tmp_path / "mine")):
        told = subprocess.run(
            [PYTHON, "-c", "import flows; print(flows.ROOT)"],
            cwd=folder,
            env=environment | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout.strip() == str(expected)


def test_every_axis_of_a_sweep_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []
    monkeypatch.setattr("flows.sweep.check_sweep", lambda _root, grid, *_: asked.append(("checked", grid)))
    monkeypatch.setattr("flows.sweep.run_here", lambda _flow, **given: asked.append(("run", given)) or 0)
    with pytest.raises(SystemExit) as ended:
        sweep_main(model=["tiny"], pruning=["wanda-0.5"], head_ratio=["0.1", "auto"], recovery=["bias", "lora"])
    assert ended.value.code == 0
    (_, grid), (_, given) = asked
    assert grid == {
        "model": ["tiny"],
        "pruning": ["wanda-0.5"],
        "head_ratio": [0.1, "auto"],
        "recovery": ["bias", "lora"],
    }
    assert [given[axis] for axis in ("models", "prunings", "head_ratios", "recoveries")] == list(grid.values())
    read = load_params(SHIPPED, tuple(f"grid.{axis}={values}" for axis, values in grid.items())).grid
    assert {axis: list(getattr(read, axis)) for axis in grid} == grid
    checked = sweep_flow.validate_parameters({"head_ratios": [1, 1.0, 0.1, "auto"]})["head_ratios"]
    assert repr(checked) == "[1, 1.0, 0.1, 'auto']", "1 and 1.0 name different stages"
    with pytest.raises(BadInput, match="--head-ratio is 'a tenth'"):
        sweep_main(head_ratio=["a tenth"])


@pytest.mark.parametrize("flow", [restore, sweep_flow, machines, model_job], ids=lambda flow: flow.name)
def test_a_flow_takes_no_number_of_stages_below_one(flow: Flow[..., Any]) -> None:
    """Prefect's UI and API give them, too; with none a stage would wait for ever."""
    given = dict.fromkeys(flow.parameters.required or (), "x")
    names = {"parallel", "gpus"} & set(flow.parameters.properties)
    assert "parallel" in names
    for name in names:
        assert flow.validate_parameters(given | {name: 1})[name] == 1
        assert flow.validate_parameters(given | {name: None})[name] is None
        for number in (0, -1):
            with pytest.raises(ParameterTypeError, match="greater than or equal to 1"):
                flow.validate_parameters(given | {name: number})


def test_a_bad_sweep_ends_before_anything_starts(project: LightProject, tmp_path: Path) -> None:
    copy = project.copy(tmp_path / "copy")
    copy.set("models.new", copy.params()["models"]["tiny"])
    done = copy.run(*SWEEP, "--model", "new")
    assert (done.code, "'new' is unknown" in done.text) == (2, True), done.text
    assert "a sweep runs a committed revision: HEAD is " in done.text
    assert len(done.text.strip().splitlines()) == 1
    assert copy.executed() == []
    assert not (copy.folder / ".work/sweeps").exists()


def test_a_sweep_takes_the_old_name_of_an_axis_with_a_warning(project: LightProject) -> None:
    done = project.run(*SWEEP, "--baseline", "nothing")
    assert (done.code, "'nothing'" in done.text) == (2, True), done.text
    assert "warning: --baseline is now called --recovery; the old name is read for now" in done.text


def test_names_that_collide_are_refused(project: LightProject, tmp_path: Path) -> None:
    copy = project.copy(tmp_path / "copy")
    content = copy.params()
    content["prune"]["external"] = {"tiny": {"a": {"source": "x"}, "a-masked": {"source": "x"}}}
    content["grid"] |= {"pruning": ["external-a", "external-a-masked"], "recovery": ["lora", "masked-lora"]}
    copy.write_params(content)
    for command in ((PYTHON, "-m", "flows.restore"), (PYTHON, "-m", "restorelcc", "check")):
        done = copy.run(*command)
        assert (done.code, "same stage name, 'tiny-external-a-masked-lora'" in done.text) == (2, True), done.text
    assert copy.executed() == []


def test_a_sweep_is_one_experiment_and_leaves_the_folder_alone(served: LightProject) -> None:
    before = (served.folder / "params.yaml").read_bytes()
    done = served.run(*SWEEP, "--pruning", "wanda-0.5", "--pruning", "wanda-0.6", "--name", "night")
    assert done.code == 0, done.text[-3000:]
    assert len(served.executed()) == 4 + 2 * 2 + 1
    assert (served.folder / "params.yaml").read_bytes() == before
    assert not (served.folder / "data").exists() or not list((served.folder / "data").glob("tiny*"))
    assert "night" in served.sh("dvc", "exp", "list", "--name-only")
    shown = json.loads(served.sh("dvc", "exp", "show", "--json"))
    assert "wanda-0.6" in json.dumps(shown)
    assert served.repro() == ["inputs@tiny", "report"], "the shared cache had all else"
    done = served.run(*SWEEP, "--pruning", "wanda-0.6", "--name", "night")
    assert done.code == 0, done.text[-3000:]
    assert [name for name in served.executed()[11:] if name != "inputs@tiny"] == ["report"]


# --- with a server


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, prefect: dict[str, str]) -> LightProject:
    """A project with its deployments on the shared server."""
    project = LightProject(tmp_path_factory.mktemp("served") / "project", GRID, stages=FEW)
    project.environment |= prefect
    deployed(project)
    return project


def post(project: LightProject, path: str, **body: Any) -> Any:
    request = urllib.request.Request(
        f"{project.environment['PREFECT_API_URL']}{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def runs(project: LightProject, **body: Any) -> list[dict[str, Any]]:
    """Flow runs that have started, the last one first; those of the coming nights are left out."""
    found = post(project, "/flow_runs/filter", sort="START_TIME_DESC", **body)
    return [run for run in found if run["start_time"] or run["state_type"] in ("CANCELLED", "CANCELLING", "RUNNING")]


def without_automations(project: LightProject) -> bool:
    """Have the server forget its automations; whether it has none."""
    for each in post(project, "/automations/filter"):
        url = f"{project.environment['PREFECT_API_URL']}/automations/{each['id']}"
        urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=30).close()
    return not post(project, "/automations/filter")


def forget_scheduled(project: LightProject) -> None:
    """Delete runs that have not begun: a schedule that is gone has left some, which the next worker would take."""
    states = {"type": {"any_": ["SCHEDULED", "PENDING"]}}
    for run in post(project, "/flow_runs/filter", flow_runs={"state": states}):
        url = f"{project.environment['PREFECT_API_URL']}/flow_runs/{run['id']}"
        urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=30).close()


def test_a_run_completes_with_its_artifacts_and_state_names(served: LightProject) -> None:
    served.set("report.title", "Seen through the API")
    done = served.run(PYTHON, "-m", "flows.restore")
    assert done.code == 0, done.text[-3000:]
    run = runs(served)[0]
    assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Completed")
    found = post(served, "/artifacts/filter", artifacts={"flow_run_id": {"any_": [run["id"]]}})
    kinds = {artifact["key"]: artifact for artifact in found}
    assert set(kinds) == {"progress", "stages", "results", "report"}
    table = json.loads(kinds["stages"]["data"])
    assert {row["stage"]: row["outcome"] for row in table}["report"] == "Ran"
    assert all(row["seconds"] >= 0 for row in table)
    assert kinds["results"]["data"].startswith("# ")
    assert "data/report/" in kinds["report"]["data"]
    assert kinds["progress"]["data"] == 100
    tasks = post(served, "/task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
    assert {task["name"] for task in tasks} == {row["stage"] for row in table}
    assert {task["state_name"] for task in tasks} <= {"Ran", "Unchanged", "Restored from the cache"}
    logs = post(served, "/logs/filter", logs={"flow_run_id": {"any_": [run["id"]]}})
    assert any("Running stage 'report'" in log["message"] for log in logs)


def test_a_cron_line_is_when_the_sweep_runs(served: LightProject) -> None:
    """As the schedule itself says: no night is waited for."""
    now = datetime(2026, 3, 28, 12, tzinfo=UTC)  # the clocks of Vienna go forward at two in the next night
    schedule = CronSchedule(cron="30 3 * * *", timezone="Europe/Vienna")
    assert nightly("30 3 * * *", "Europe/Vienna").cron == schedule.cron
    dates = [date.astimezone(UTC).isoformat() for date in asyncio.run(schedule.get_dates(2, start=now))]
    assert dates == ["2026-03-29T01:30:00+00:00", "2026-03-30T01:30:00+00:00"]
    (deployed,) = post(served, "/deployments/filter", deployments={"name": {"any_": ["nightly"]}})
    (kept,) = deployed["schedules"]
    assert (kept["active"], kept["schedule"]["cron"], kept["schedule"]["timezone"]) == (True, "0 2 * * *", "UTC")
    assert deployed["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


def test_a_scheduled_run_fires_an_overlapping_one_is_cancelled_and_cancel_leaves_no_process(
    served: LightProject, tmp_path: Path
) -> None:
    served.repro()
    served.set("dense.pretrain.seed", 11)
    served.commit("something to compute")
    before = len(served.executed())
    served.sh(PREFECT, "deployment", "schedule", "clear", "--accept-yes", "sweep/nightly")
    often = ("--interval", "20", "--timezone", "UTC")
    served.sh(PREFECT, "deployment", "schedule", "create", "sweep/nightly", *often)
    with served.background(*WORKER, log=tmp_path / "worker.log", STANDIN_SECONDS="600"):
        wait_for(lambda: "dense@tiny" in served.executed()[before:], "a stage of the scheduled run")
        (run,) = [run for run in runs(served) if run["state_type"] == "RUNNING"]
        assert run["auto_scheduled"]
        wait_for(lambda: cancelled(served), "the overlapping run to be cancelled")
        served.sh(PREFECT, "deployment", "schedule", "clear", "--accept-yes", "sweep/nightly")
        pid = next(pid for what, _, pid, _ in reversed(served.events()) if what == "start")
        served.sh(PREFECT, "flow-run", "cancel", run["id"])
        wait_for(lambda: not alive(pid), "the stage to end")
        clone = str(served.folder / ".work/sweeps/nightly")
        wait_for(lambda: clone not in "".join(left_behind(served).values()), "its processes to end")
        assert wait_for(lambda: ended(served, run["id"]), "the run to be cancelled") == "CANCELLED"
    forget_scheduled(served)


def cancelled(project: LightProject) -> bool:
    """Whether a scheduled run was cancelled, and had not begun."""
    return any(run["state_type"] == "CANCELLED" and run["auto_scheduled"] for run in runs(project))


def ended(project: LightProject, run: str) -> str | None:
    """The type of a run's state, once it is a final one."""
    kind = post(project, "/flow_runs/filter", flow_runs={"id": {"any_": [run]}})[0]["state_type"]
    return kind if kind in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def begun(project: LightProject) -> str:
    """Have the worker run the grid; the run's id, once one of its stages executes."""
    before = len(project.executed())
    project.sh(PREFECT, "deployment", "run", "restore/now")
    wait_for(lambda: len(project.executed()) > before, "a stage to run")
    return next(run["id"] for run in runs(project) if run["state_type"] == "RUNNING")


WORKER = (PREFECT, "worker", "start", "--pool", "restorelcc")


def test_a_killed_worker_leaves_a_run_that_ends_and_a_rerun_finishes(served: LightProject, tmp_path: Path) -> None:
    served.repro()
    served.set("dense.pretrain.seed", 78)
    before = len(served.executed())
    with served.background(*WORKER, log=tmp_path / "worker.log", STANDIN_SECONDS="1") as worker:
        run = begun(served)
        kill_all(served, "worker start")
        worker.wait()
        wait_for(lambda: ended(served, run), "the run to end")
    mend(served.folder)  # as every flow does: a kill can leave dvc.lock empty
    again = served.repro()
    assert (again == []) == (ended(served, run) == "COMPLETED")
    kinds = [name.partition("@")[0] for name in served.executed()[before:]]
    # Without dvc.lock `inputs` looks at the files again; what was computed comes back from the run-cache.
    assert set(kinds) - {"inputs"} == {"dense", "evaluate_dense", "evaluate_pruned", "prune", "report"}
    assert again or len(kinds) == 5, "each once"
    assert len(set(again)) == len(again)
    assert served.repro() == []


def test_a_run_whose_machine_died_is_marked_crashed_and_a_rerun_runs_what_is_missing(
    served: LightProject, tmp_path: Path
) -> None:
    """kill -9 of everything at once. Heartbeats and the time without one are shorter than the shipped ones."""
    automations = yaml.safe_load((served.folder / "flows/automations.yaml").read_text())
    automations["automations"][0]["trigger"]["within"] = 35
    (tmp_path / "automations.yaml").write_text(json.dumps(automations))
    served.sh(PREFECT, "automation", "create", "--from-file", str(tmp_path / "automations.yaml"))
    served.repro()
    served.set("dense.pretrain.seed", 79)
    slow = {"STANDIN_SECONDS": "600", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    with served.background(*WORKER, log=tmp_path / "worker.log", **slow):
        run = begun(served)
        stage = served.events()[-1][2]
        kill_all(served, "prefect")
        wait_for(lambda: not alive(stage), "the stage to end with its flow")
    assert not ended(served, run), "nobody could tell the server"
    assert wait_for(lambda: ended(served, run), "the run to be marked") == "CRASHED"
    wait_for(lambda: without_automations(served), "the automation to go: the server has other tests")
    forget_scheduled(served)
    before = len(served.executed())
    with served.background(*WORKER, log=tmp_path / "again.log"):
        served.sh(PREFECT, "deployment", "run", "restore/now", "--watch")
    assert ended(served, runs(served)[0]["id"]) == "COMPLETED"
    kinds = [name.partition("@")[0] for name in served.executed()[before:]]
    assert sorted(kinds) == ["dense", "evaluate_dense", "evaluate_pruned", "prune", "report"]
    assert served.repro() == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["0 2 * * *", "UTC"], "PREFECT_API_URL is not set: start `prefect server start`"),
        (["at noon", "UTC"], "--cron 'at noon' is not a cron line"),
        (["0 2 * * *", "Nowhere"], "--timezone 'Nowhere' is unknown"),
    ],
)
def test_serve_refuses_in_one_sentence(options: list[str], sentence: str) -> None:
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(BadInput) as caught:
        serve.main(*options)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
