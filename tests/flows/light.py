"""A project with the real dvc.yaml whose stages are light: what is counted, cached, killed and raced is real."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml
from dvc.repo import Repo, lock_repo
from networkx import topological_sort

from restorelcc.base.layout import Layout
from restorelcc.pipeline.inputs import lay_out_inputs
from restorelcc.pipeline.params import load_params
from tests.dag import ROOT
from tests.flows import standin
from tests.flows.in_process import repo_here
from tests.flows.servers import FAST_LOCK, fork_of, forking_python, process

# Stages enough where a test is about who runs them, when and how often.
FEW = ("inputs", "corpus", "dense", "prune", "evaluate_dense", "evaluate_pruned", "report")
FORKS = ("dvc", "prefect.engine", "restorelcc", "restorelcc.pipeline.run_cache", "uvicorn")  # modules that forks run
STANDIN = Path(__file__).with_name("standin.py")


@dataclass
class Done:
    """A finished command: its exit code, and both outputs as one text."""

    code: int
    text: str


class LightProject:
    """The project's pipeline in a git and DVC repository of its own, `restorelcc` replaced by the stand-in."""

    commands: ClassVar[Callable[[], Path] | None] = None  # the socket of the process that has DVC and Prefect imported

    def __init__(
        self,
        folder: Path,
        grid: dict[str, Any] | None = None,
        models: int = 1,
        stages: Sequence[str] | None = None,
        code: Sequence[str] | None = None,
    ) -> None:
        """`stages`: of dvc.yaml those that stay. `code`: of the code the files that stay, where no process starts.

        All of them, unless told otherwise.
        """
        self.folder = folder
        folder.mkdir(parents=True)
        for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
            shutil.copy(ROOT / name, folder / name)
        for name in ("restorelcc", "flows", "versions"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for path in [] if code is None else [*folder.glob("restorelcc/**/*.py"), *folder.glob("flows/*.py")]:
            if path.name != "__init__.py" and str(path.relative_to(folder)) not in code:
                path.unlink()
        if stages:
            (folder / "dvc.yaml").write_text(_only(stages, (ROOT / "dvc.yaml").read_text()))
        self._prepare(folder.with_name(f"{folder.name}-bin"), folder.with_name(f"{folder.name}.log"))
        content = self.shipped_params()
        names = ("tiny", "second", "third")[:models]
        content["models"] = dict.fromkeys(names, content["models"]["tiny"])
        content["grid"] |= {"model": list(names), "recovery": []} | (grid or {})
        self.write_params(content)
        self.sh("git", "init", "--quiet", "--initial-branch", "main")
        Repo.init(str(folder)).close()
        self.commit("start")

    def shipped_params(self) -> dict[str, Any]:
        """What params.yaml starts from, before the grid is put into it."""
        return yaml.safe_load((ROOT / "params.yaml").read_text())

    def command(self, log: Path) -> str:
        """The shell script that stands in for `restorelcc`."""
        return f'#!/bin/sh\nexec {sys.executable} -I -S {STANDIN} "$@"\n'

    def _prepare(self, bin_folder: Path, log: Path) -> None:
        bin_folder.mkdir(exist_ok=True)
        command = bin_folder / "restorelcc"
        command.write_text(self.command(log))
        command.chmod(0o755)
        self.log = log
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "AWS"))
        } | {
            "PATH": f"{bin_folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RESTORELCC_BIN": str(bin_folder),
            "RESTORELCC_GATES": str(bin_folder / "gates"),
            "STANDIN_LOG": str(log),
            "STANDIN_PACKAGES": str(Path(yaml.__file__).parents[1]),
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(bin_folder / "site"),
            "PYTHONPATH": f"{self.folder}:{FAST_LOCK}",
            "HOME": str(bin_folder),
            "GIT_AUTHOR_NAME": "T",
            "GIT_AUTHOR_EMAIL": "t@localhost",
            "GIT_COMMITTER_NAME": "T",
            "GIT_COMMITTER_EMAIL": "t@localhost",
            "NO_COLOR": "1",
        }

    def clone(self, folder: Path) -> LightProject:
        """A second person's clone of what is committed, with a log of its own."""
        other = object.__new__(type(self))
        other.folder = folder
        self.sh("git", "clone", "--quiet", str(self.folder), str(folder))
        other._prepare(folder.with_name(f"{folder.name}-bin"), folder.with_name(f"{folder.name}.log"))
        return other

    def copy(self, folder: Path) -> LightProject:
        """The folder as it is, artifacts and DVC cache too, with a log of its own."""
        other = object.__new__(type(self))
        other.folder = folder
        shutil.copytree(self.folder, folder, symlinks=True)
        other._prepare(folder.with_name(f"{folder.name}-bin"), folder.with_name(f"{folder.name}.log"))
        return other

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command in the project, its output in one pipe."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, timeout: float = 1800, **environment: str) -> Done:
        """Run a command until it ends. DVC's, Prefect's and Python's modules share their imports, by fork."""
        start = self.start_fork if self.commands and _known(command) else self.start
        running = start(*command, **environment)
        try:
            text, _ = running.communicate(timeout=timeout)
        finally:
            running.kill()
        return Done(running.returncode, text)

    @classmethod
    def socket(cls) -> Path:
        """Of the process whose forks run commands."""
        assert cls.commands, "it is a fixture of tests/flows"
        return cls.commands()

    @contextmanager
    def background(self, *command: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command that goes on until the block ends, in a fork; a kill -9 of it is a SIGTERM for the fork."""
        start = (*fork_of(self.socket()), *_known(command))
        with process(*start, log=log, cwd=self.folder, **self.environment | self.forks() | environment) as running:
            yield running

    def forks(self) -> dict[str, str]:
        """The environment of a fork: what it and its processes start as `python -m dvc` is a fork, too.

        So are a flow that a worker starts, a flow's own server, and the stand-in's look at a user's files.
        """
        folder = Path(self.environment["RESTORELCC_BIN"]) / "forks"
        python = forking_python(folder, self.socket(), *FORKS)
        return {"LIGHT_PYTHON": str(python)}

    def start_fork(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """`start` of a command that a fork runs."""
        return self.start(*fork_of(self.socket()), *_known(command), **self.forks() | environment)

    def sh(self, *command: str, **environment: str) -> str:
        """Run a command that must succeed; its output."""
        done = self.run(*command, **environment)
        assert done.code == 0, f"{command} ended with {done.code}:\n{done.text[-4000:]}"
        return done.text

    def restorelcc(self, *arguments: str, **environment: str) -> Done:
        """The real command line, not the stand-in."""
        return self.run(sys.executable, "-m", "restorelcc", *arguments, **environment)

    def repro(self) -> list[str]:
        """`dvc repro`, DVC and the stand-in in this process; the stages that were executed by it."""
        before = len(self.executed())
        with repo_here(self.folder, self.environment) as repo:
            repo.reproduce()
        return self.executed()[before:]

    def status(self) -> dict[str, Any]:
        """What `dvc status` finds changed, asked in this process."""
        with repo_here(self.folder, self.environment) as repo:
            found: dict[str, Any] = repo.status()
        return found

    def would_run(self) -> set[str]:
        """The stages that `dvc repro` would execute, asked of DVC in this process: its status and its graph.

        A stage's outputs change with its parameters, its command and its data, as the stand-in's do: not with its code,
        nor with the version of a package. `inputs` is run, by a call. Not for what the run-cache may bring back.
        """
        with repo_here(self.folder, self.environment) as repo, lock_repo(repo):  # locked, it reads dvc.yaml once
            stages = {each.addressing: each for each in reversed(list(topological_sort(repo.index.graph)))}
            running = set(repo.status([name for name in stages if name.startswith("inputs@")]))
            params = load_params(self.folder / "params.yaml")
            for name in running:
                lay_out_inputs(params, name.partition("@")[2], Layout(self.folder))
            status = repo.status()
        moved: set[Path] = set()  # outputs that will be others
        for name, stage in stages.items():
            if name.startswith("inputs@"):
                continue
            changes = status.get(name, [])
            deps = {path for each in changes if isinstance(each, dict) for path in each.get("changed deps", {})}
            reads = [Path(dep.fs_path) for dep in stage.deps]
            follows = any(path == out or path in out.parents or out in path.parents for path in reads for out in moved)
            if deps or "changed command" in changes or follows:
                running.add(name)
            data = {path for path in deps if path.startswith("data/")}
            if follows or "changed command" in changes or "params.yaml" in deps:
                moved |= {Path(out.fs_path) for out in stage.outs}
            elif data:
                moved |= {Path(path) for out in stage.outs for path in standin.moved(out.fs_path, data)}
        return running

    def executed(self) -> list[str]:
        """Every execution so far, in order."""
        return [name for what, name, *_ in self.events() if what == "start"]

    def events(self) -> list[tuple[str, str, int, float]]:
        """(start or end, stage, process, time) of every execution."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [_event(line) for line in lines]

    def commit(self, message: str) -> None:
        self.sh("git", "add", "--all")
        self.sh("git", "commit", "--quiet", "--message", message)

    def params(self) -> dict[str, Any]:
        return yaml.safe_load((self.folder / "params.yaml").read_text())

    def write_params(self, content: dict[str, Any]) -> None:
        """As JSON, which is YAML too and which the stand-in can read."""
        (self.folder / "params.yaml").write_text(json.dumps(content, indent=1))

    def set(self, key: str, value: Any) -> None:
        """Change one parameter, by its dotted name."""
        content = self.params()
        *parents, last = key.split(".")
        section = content
        for parent in parents:
            section = section[parent]
        section[last] = value
        self.write_params(content)

    def artifacts(self) -> dict[str, bytes]:
        """Every file under data/, by its path."""
        data = self.folder / "data"
        return {str(path.relative_to(data)): path.read_bytes() for path in sorted(data.rglob("*")) if path.is_file()}

    def results(self) -> dict[str, object]:
        """What must be the same however the grid is run."""
        return dict(self.artifacts())


def _only(stages: Sequence[str], text: str) -> str:
    """dvc.yaml with some of its stages, their text as it stands."""
    start, blank, rest = text.partition("stages:\n")
    body, plots, end = rest.partition("\nplots:\n")
    kept = [block for block in re.split(r"\n(?=  \w+:\n)", body) if block.strip().partition(":")[0] in stages]
    assert len(kept) == len(stages)
    return start + blank + "\n".join(kept) + plots + end


def _known(command: Sequence[str]) -> Sequence[str]:
    """The command as the process with the imports takes it; nothing for any other."""
    first, *rest = command
    if Path(first).name in ("dvc", "prefect"):
        return [Path(first).name, *rest]
    return rest if first == sys.executable and rest[:1] == ["-m"] else []


def _event(line: str) -> tuple[str, str, int, float]:
    what, name, pid, time = line.split(" ")
    return what, name, int(pid), float(time)
