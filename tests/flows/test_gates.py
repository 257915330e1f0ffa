"""Which stages wait for a GPU, and that all flows of a user on one machine share its slots."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import lock_descriptor

from flows import gates
from flows.dag import Stage, read_dag
from flows.gates import CPU, GPU, Limits, gate, gate_folder, visible_gpus
from flows.restore import end_on_workers
from flows.stage_process import (
    RAN,
    RESTORED,
    UNCHANGED,
    Command,
    StageError,
    _own,
    _throttled,
    end_all,
    raise_if_ending,
    run_stage,
    run_tied,
)
from flows.tasks import command_of, on_this_machine
from restorelcc.base.errors import BadInput
from restorelcc.pipeline.gpus import Seen
from restorelcc.pipeline.params import load_params
from tests.flows.light import LightProject
from tests.flows.servers import wait_for

GRID = {"pruning": ["wanda-0.5"], "head_ratio": [0.1], "recovery": ["bias"]}
ON_GPU = {"capture_dense", "prune", "capture_pruned", "probe", "compensate", "recover"}
ON_GPU |= {"evaluate_dense", "evaluate_pruned", "evaluate_restored", "evaluate_recovered"}
ON_CPU = {
    "inputs",
    "corpus",
    "dense",
    "extract",
    "report",
}  # the embedded model is pretrained on the CPU, wherever that is


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> LightProject:
    return LightProject(tmp_path_factory.mktemp("gates") / "project", GRID)


def _stages(project: LightProject, monkeypatch: pytest.MonkeyPatch, gpus: str, **entry: str | int) -> dict[str, Stage]:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(project.folder.with_name("site")))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    params = load_params(project.folder / "params.yaml")
    models = {"tiny": params.models["tiny"].model_copy(update=entry)}
    stages = read_dag(project.folder, params.model_copy(update={"models": models})).stages
    assert {stage.kind for stage in stages} == ON_GPU | ON_CPU
    return {stage.kind: stage for stage in stages}


def test_stages_that_load_a_model_wait_for_a_gpu(project: LightProject, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = _stages(project, monkeypatch, "0,1")
    assert {kind for kind, stage in stages.items() if stage.resource == GPU} == ON_GPU
    assert {kind for kind, stage in stages.items() if stage.resource == CPU} == ON_CPU
    assert not any(stage.every_gpu for stage in stages.values())
    assert [Limits(8).slots(kind) for kind in (CPU, GPU)] == [8, 2]
    assert [Limits(8, gpus=1).slots(kind) for kind in (CPU, GPU)] == [8, 1]


def test_a_model_on_the_cpu_needs_no_gpu(project: LightProject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {stage.resource for stage in _stages(project, monkeypatch, "0,1", device="cpu").values()} == {CPU}


@pytest.mark.parametrize(("gpus", "slots"), [("", 8), ("-1", 8), ("0,1,2", 3)], ids=["none", "hidden", "three"])
def test_the_machine_that_runs_a_stage_decides_whether_and_how_many_gpus_there_are(
    gpus: str, slots: int, project: LightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Dask the flow's own machine may have another number of them, or none."""
    stages = _stages(project, monkeypatch, "" if slots == 3 else "0,1,2", device_map="auto")
    command = command_of(stages["prune"], "root")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    limits = Limits(8)
    command = on_this_machine(command, limits)
    assert (command.resource, command.every_gpu) == ((GPU, True) if slots == 3 else (CPU, False))
    assert limits.slots(command.resource) == slots
    assert on_this_machine(command_of(stages["report"], "root"), limits).resource == CPU


def test_a_gpu_that_is_not_listed_has_a_gate_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under WSL 2 and ROCm, where torch is asked, and wherever `--gpus` is given."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gates, "listed_gpus", lambda: 0)
    monkeypatch.setattr(gates, "_UNLISTED", (tmp_path / "dxg",))
    asked: list[bool] = []
    monkeypatch.setattr(gates, "_seen", lambda: asked.append(True) or Seen("12.8", 2))
    command = Command("root", "prune", GPU)
    assert on_this_machine(command, Limits()).resource == CPU and not asked
    assert on_this_machine(command, Limits(gpus=1)).resource == GPU and not asked
    with monkeypatch.context() as hidden:
        hidden.setenv("CUDA_VISIBLE_DEVICES", "")
        assert on_this_machine(command, Limits(gpus=1)).resource == CPU
    (tmp_path / "dxg").touch()
    assert on_this_machine(command, Limits()).resource == GPU and asked
    assert visible_gpus() == ["0", "1"] and Limits().slots(GPU) == 2


@pytest.mark.parametrize("entry", [{"device": "cuda:1"}, {"device_map": "auto"}, {"device_map": "auto", "device": CPU}])
def test_a_model_that_is_spread_or_names_its_gpu_has_all_of_them(
    entry: dict[str, str], project: LightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = _stages(project, monkeypatch, "0,1", **entry)
    assert {kind for kind, stage in stages.items() if stage.every_gpu} == ON_GPU
    command = command_of(stages["prune"], "root")
    assert command.every_gpu and not command_of(stages["report"], "root").every_gpu
    assert _own(Command("root", "prune", GPU, None, every_gpu=True)) == {}, "CUDA_VISIBLE_DEVICES stays as it is"
    assert _own(Command("root", "prune", GPU, 1)) == {"CUDA_VISIBLE_DEVICES": "1"}
    assert _own(Command("root", "report", CPU, 1)) == {}


FLOW = """
import os, sys, threading, time
from flows.gates import gate
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
def stage(number):
    with gate("gpu", int(sys.argv[1]), every=sys.argv[2] == "every") as slot:
        say("in", slot, time.monotonic_ns())
        time.sleep(0.05)
        say("out", slot, time.monotonic_ns())
threads = [threading.Thread(target=stage, args=(n,)) for n in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
"""


def _flows(folder: Path, *flows: tuple[str, str, str]) -> list[tuple[int, str, str]]:
    """(time, in or out, GPU) of every stage of several flows at once; each: GPUs it sees, slots, one or every."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", FLOW, slots, how],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": gpus, "RESTORELCC_GATES": str(folder)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for gpus, slots, how in flows
    ]
    events = []
    for process, (gpus, _, _) in zip(running, flows, strict=True):
        lines = process.communicate(timeout=60)[0].splitlines()
        assert process.returncode == 0 and len(lines) == 8
        for line in lines:
            what, slot, when = line.split()
            events.append((int(when), what, "all" if slot == "None" else gpus.split(",")[int(slot)]))
    return sorted(events)


def _most(events: list[tuple[int, str, str]]) -> int:
    inside = most = 0
    for _, what, _ in events:
        inside += 1 if what == "in" else -1
        most = max(most, inside)
    return most


def test_two_flows_share_the_slots(tmp_path: Path) -> None:
    events = _flows(tmp_path, ("0,1", "2", "one"), ("0,1", "2", "one"))
    assert _most(events) == 2
    for gpu in ("0", "1"):
        assert _most([event for event in events if event[2] == gpu]) == 1


def test_flows_that_see_different_gpus_never_meet_on_one(tmp_path: Path) -> None:
    events = _flows(tmp_path, ("0,1", "2", "one"), ("1", "1", "one"))
    assert _most(events) <= 2
    assert _most([event for event in events if event[2] == "1"]) == 1


def test_a_stage_that_needs_every_gpu_has_them_alone(tmp_path: Path) -> None:
    events = _flows(tmp_path, ("0,1", "2", "one"), ("1,0", "2", "every"), ("0,1", "2", "every"))
    inside: list[str] = []
    for _, what, gpu in events:
        if what == "out":
            inside.remove(gpu)
            continue
        assert "all" not in inside and not (gpu == "all" and inside)
        inside.append(gpu)


def _is_free(gpus: str, slots: int, monkeypatch: pytest.MonkeyPatch, *, every: bool = False) -> bool:
    """Whether a stage of a flow that sees these GPUs would not have to wait."""

    def give_up() -> None:
        raise TimeoutError

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    try:
        with gate(GPU, slots, every=every, meanwhile=give_up):
            return True
    except TimeoutError:
        return False


def test_every_gpu_is_all_of_them_however_few_stages_may_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESTORELCC_GATES", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    with gate(GPU, 1, every=True):
        assert not any(_is_free(gpu, 1, monkeypatch) for gpu in "0123")
        assert _is_free("4", 1, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with gate(GPU, 2), gate(GPU, 2) as second:
        assert second == 1
    assert _is_free("0,1,2,3", 1, monkeypatch, every=True)
    with (tmp_path / "gpu-3.1").open("a") as held:
        assert lock_descriptor(held.fileno(), blocking=False)
        assert not _is_free("0,1,2,3", 1, monkeypatch, every=True), "the second slot of a flow that has two of it"


def test_a_gate_is_opened_again_by_a_process_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTORELCC_GATES", str(tmp_path))
    code = "import time; from flows.gates import gate\nwith gate('gpu', 1): print('in', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "in\n"
    entered = threading.Event()

    def enter() -> None:
        with gate(GPU, 1):
            entered.set()

    waiting = threading.Thread(target=enter)
    waiting.start()
    time.sleep(0.3)
    assert not entered.is_set()
    holder.kill()
    holder.wait()
    assert entered.wait(10)
    waiting.join()


def test_a_run_that_is_cancelled_waits_for_no_device_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESTORELCC_GATES", str(tmp_path))
    ended: list[str] = []

    def wait() -> None:
        with pytest.raises(StageError) as error, gate(CPU, 1, meanwhile=partial(raise_if_ending, "mine")):
            ended.append("went in")
        ended.append(str(error.value))

    with gate(CPU, 1):
        waiting = threading.Thread(target=wait)
        waiting.start()
        end_all("another's")
        time.sleep(0.3)
        assert waiting.is_alive()
        end_all("mine")
        waiting.join(10)
        assert not waiting.is_alive() and ended == ["the run is being cancelled"]


def test_a_cancelled_run_ends_its_stages_on_dask_workers_and_no_others(tmp_path: Path) -> None:
    """Workers of a scheduler that is there already outlive the flow."""
    dask = pytest.importorskip("distributed")  # of prefect-dask, the extra `dask`
    quiet = {"dashboard_address": None, "silence_logs": True}
    cluster = dask.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=True, local_directory=str(tmp_path), **quiet
    )
    with cluster, dask.Client(cluster, set_as_default=False) as client:
        sleep = {run: ["sh", "-c", f"touch {run}; exec sleep 600"] for run in ("mine", "theirs")}
        runs = {
            run: client.submit(run_tied, command, tmp_path, print, None, run, pure=False)
            for run, command in sleep.items()
        }
        for run in runs:
            wait_for((tmp_path / run).exists, f"the stage of {run}")
        end_on_workers(client, "mine")
        code, _ = runs["mine"].result(timeout=30)
        assert code != 0
        with pytest.raises(StageError, match="the run is being cancelled"):
            client.submit(run_tied, sleep["mine"], tmp_path, print, None, "mine", pure=False).result(timeout=30)
        assert not runs["theirs"].done()
        end_on_workers(client, "theirs")


# --- the cores of a CPU


def test_stages_on_the_cpu_have_a_core_for_each_of_their_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a model without `threads`, which torch runs on every core, have the machine alone."""
    monkeypatch.setenv("RESTORELCC_GATES", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    limits, lock = Limits(), threading.Lock()
    inside: list[int] = []
    most: list[list[int]] = []

    def stage(threads: int) -> None:
        taken = limits.taken(CPU, threads)
        with gate(CPU, limits.slots(CPU), taken=taken):
            with lock:
                inside.append(taken)
                most.append(sorted(inside))
            time.sleep(0.05)
            with lock:
                inside.remove(taken)

    running = [threading.Thread(target=stage, args=(threads,)) for threads in (1, 3, 0, 2, 1, 0, 2, 3, 64, 1)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(30)
    assert len(most) == len(running), "all came in"
    assert all(held in ([64], [4]) or sum(held) <= 4 for held in most)
    assert any(len(held) > 1 for held in most)


@pytest.mark.parametrize(
    ("limits", "told", "taken", "share"),
    [
        (Limits(), None, {0: 4, 1: 1, 3: 3}, None),
        (Limits(), "2", {0: 2, 1: 1, 3: 3}, None),
        (Limits(), "2,1", {0: 4, 1: 1}, None),
        (Limits(3), None, {0: 1, 1: 1, 8: 1}, 1),
        (Limits(2), None, {0: 1, 4: 1}, 2),
        (Limits(9), None, {0: 1}, 1),
        (Limits(2), "3", {0: 1}, None),
    ],
)
def test_as_many_stages_as_were_asked_for_share_the_cores(
    limits: Limits, told: str | None, taken: dict[int, int], share: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert {threads: limits.taken(CPU, threads) for threads in taken} == taken
    assert limits.share() == share
    assert limits.taken(GPU, 0) == 1
    own = {} if share is None else {"OMP_NUM_THREADS": str(share)}
    assert _own(Command("root", "prune", CPU, threads=0, share=share)) == own
    assert _own(Command("root", "prune", CPU, threads=4, share=share)) == {}, "the model's own setting holds"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert _own(Command("root", "prune", GPU, threads=0, share=share)) == {}


def test_a_stage_has_the_threads_of_its_model(project: LightProject, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = _stages(project, monkeypatch, "", threads=0)
    assert {kind: command_of(stage, "root").threads for kind, stage in stages.items()} == {
        kind: 1 if kind == "report" else 0 for kind in ON_GPU | ON_CPU
    }


# --- the folder of the gates, which lies where everybody may write


def test_the_gates_are_a_folder_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESTORELCC_GATES", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = gate_folder()
    assert (folder.parent, folder.stat().st_mode & 0o777) == (tmp_path, 0o700)
    assert gate_folder() == folder


@pytest.mark.parametrize("what", ["another's", "writable", "link", "file"])
def test_gates_that_somebody_else_made_are_refused(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESTORELCC_GATES", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = gate_folder()
    if what == "another's":
        real = os.getuid()
        folder.rename(tmp_path / f"restorelcc-gates-{real + 1}")
        monkeypatch.setattr("os.getuid", lambda: real + 1)
    elif what == "writable":
        folder.chmod(0o777)
    else:
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere") if what == "link" else folder.touch()
    with pytest.raises(BadInput, match=r"restorelcc-gates-\d+, .* or set RESTORELCC_GATES") as caught:
        gate_folder()
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("RESTORELCC_GATES", str(tmp_path / "own"))
    assert gate_folder() == tmp_path / "own"


@pytest.mark.parametrize(
    "bar", ["prune: {}/40 blocks |##  | 00:01<00:02", "Loading weights:  {}%|#   | {}/40 [00:00<?, ?it/s]"]
)
def test_a_bar_is_one_line_every_ten_seconds(bar: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(100 + 0.5 * step for step in range(100))
    monkeypatch.setattr("flows.stage_process.time", SimpleNamespace(monotonic=lambda: next(clock)))
    ticks = [bar.replace("{}", str(step)) for step in range(40)]
    said = list(_throttled(["before\n", *ticks, "after a | b\n"]))
    assert said[0] == "before" and said[-1] == "after a | b"
    assert 2 <= len(said) - 2 <= 3


@pytest.mark.parametrize(
    ("first", "outcome"),
    [("Running stage 'prune@tiny':", RAN), ("Stage 'x' is cached - skipping run", RESTORED), ("nothing", UNCHANGED)],
)
def test_what_became_of_a_stage_is_known_however_much_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, outcome: str
) -> None:
    """DVC says it first, and a bar prints a line every ten seconds."""
    (tmp_path / "dvc").mkdir()
    (tmp_path / "dvc" / "__init__.py").write_text("")
    (tmp_path / "dvc" / "__main__.py").write_text(f"print({first!r})\nfor n in range(200):\n    print('line', n)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said: list[str] = []
    assert run_stage(Command(str(tmp_path), "prune@tiny", CPU), said.append) == outcome
    assert (said[0], len(said)) == (first, 201)
