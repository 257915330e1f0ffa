"""Every command in the how-tos, run in the order in which they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.dag import ROOT
from tests.flows.light import FEW, LightProject
from tests.flows.servers import fork_of, free_port, migrated, process, wait_for
from tests.flows.test_restore import alive
from tests.flows.test_schedules import runs

GRID = {"pruning": ["wanda-0.5"], "head_ratio": [0.25]}


def blocks(page: str) -> list[tuple[str, str]]:
    """(what it is: "" or server, worker, ...; commands) of every bash block of a page."""
    text = (ROOT / "docs" / page).read_text()
    return [(kind.strip(), body) for kind, body in re.findall(r"```bash([^\n]*)\n(.*?)```", text, re.DOTALL)]


def real_commands(project: LightProject) -> None:
    """`restorelcc` is the real one where a how-to calls it, and the stand-in where DVC or a flow does.

    Commands are forks of the process with the imports, here in a shell, too; but not what is ended by Ctrl-C.
    """
    command = Path(project.environment["RESTORELCC_BIN"]) / "restorelcc"
    standin = command.with_name("standin")
    command.rename(standin)
    fork = f"exec {' '.join(fork_of(LightProject.socket()))}"
    scripts = {
        "restorelcc": f'[ "$DVC_STAGE" ] && exec {standin} "$@"\n{fork} -m restorelcc "$@"',
        "prefect": f'{fork} prefect "$@"',
        "dvc": f'{fork} dvc "$@"',
        "python": f'[ "$2" = flows.serve ] || {fork} "$@"\nexec {sys.executable} "$@"',
    }
    project.environment |= project.forks()
    for name, text in scripts.items():
        script = command.with_name(name)
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)


def run(project: LightProject, body: str, **environment: str) -> None:
    done = project.run("bash", "-euo", "pipefail", "-c", body, **environment)
    assert done.code == 0, f"{body}\n{done.text[-4000:]}"


def test_sharing(tmp_path: Path, s3: dict[str, str], ssh: tuple[int, Path]) -> None:
    project = LightProject(tmp_path / "project", GRID, stages=FEW)
    real_commands(project)
    project.repro()
    port, home = ssh
    environment = s3 | {
        "S3_ENDPOINT": s3["ENDPOINT"],
        "TEAM_FOLDER": str(tmp_path / "team"),
        "SSH_REMOTE": f"ssh://127.0.0.1:{port}{tmp_path}/results",
        "HOME": str(home),
    }
    found = blocks("sharing.md")
    assert len(found) == 5
    for _, body in found:
        run(project, body, **environment)
    assert list((tmp_path / "results" / "files").rglob("*")), "the last remote holds the results"


def test_schedules_and_distributed(tmp_path: Path, prefect_home: Path) -> None:
    project = LightProject(tmp_path / "project", GRID, stages=FEW)
    real_commands(project)
    port = free_port()
    project.environment |= {
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_HOME": str(project.folder / ".work/prefect"),
        "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
        "RESTORELCC_ROOT": str(project.folder),
        "RESTORELCC_CLONES": str(tmp_path / "clones"),
    }
    migrated(project.folder / ".work/prefect", prefect_home)
    found = blocks("schedules.md")
    assert [kind for kind, _ in found] == ["", "server", "", "", "worker", "", "", "", "serve", "cancel"]
    bodies = {kind: body for kind, body in found if kind}
    first, address, deploy, run_now, schedule, automation = [body for kind, body in found if not kind]
    with ExitStack() as stack:

        def background(body: str, name: str) -> subprocess.Popen[bytes]:
            command = ("bash", "-c", f"cd {project.folder}; {body}")
            return stack.enter_context(process(*command, log=tmp_path / f"{name}.log", **project.environment))

        server = background(bodies["server"], "server")

        def ready() -> bool:
            assert server.poll() is None, (tmp_path / "server.log").read_text()[-2000:]
            return runs(project) is not None

        wait_for(ready, "the Prefect server")
        for body in (first, address, deploy):
            run(project, body)
        background(bodies["worker"], "worker")
        for body in (run_now, schedule, automation):
            run(project, body)

        serving = background(bodies["serve"], "serve")
        wait_for(lambda: b"sweep/nightly" in (tmp_path / "serve.log").read_bytes() or not alive(serving.pid), "serve")
        assert alive(serving.pid), (tmp_path / "serve.log").read_text()[-2000:]
        os.killpg(serving.pid, 2)
        serving.wait(300)
        run(project, deploy)

        project.restorelcc("share", str(tmp_path / "remote"))
        project.commit("share")
        for kind, body in blocks("distributed.md"):
            if kind != "worker":
                run(project, body)

        project.set("dense.pretrain.seed", 9)
        project.commit("more")
        before = len(project.executed())
        project.log.with_suffix(".slow").write_text("30")
        project.sh("prefect", "deployment", "run", "restore/now")
        wait_for(lambda: len(project.executed()) > before, "a stage to run")
        current = next(run["id"] for run in runs(project) if run["state_type"] == "RUNNING")
        pid = project.events()[-1][2]
        run(project, bodies["cancel"], FLOW_RUN=current)
        wait_for(lambda: not alive(pid), "the stage to end")
