"""Every stage, traced: what it opens, reads from the environment and loads is a dependency of it, or is listed here.

That is the guarantee behind "a change runs what depends on it, and nothing else": whatever a stage reads that DVC does
not watch, this test finds. A model of a user's own is run through all stages; its data, tasks, weights and external
checkpoint lie outside the project.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
import yaml

from restorelcc.models.checkpoints import save_checkpoint
from restorelcc.pipeline.stages import STAGES as REGISTERED
from restorelcc.pipeline.versions import read_groups
from tests import pico
from tests.dag import HARMLESS, ROOT
from tests.flows.servers import FORKED, process, wait_for
from tests.opened import Opened
from tests.release.export.restored import pruned_model
from tests.stages.prune.project import words

MODEL, PRUNING, RATIO = "mine", "wanda-0.5", "0.25"
CELL = {"model": MODEL, "pruning": PRUNING, "head_ratio": RATIO, "recovery": "bias"}
# In an order in which each finds what it reads.
STAGES = ("inputs", "corpus", "dense", "capture_dense", "prune", "capture_pruned", "extract", "probe", "compensate")
STAGES += ("recover", "evaluate_dense", "evaluate_pruned", "evaluate_restored", "evaluate_recovered", "speed", "report")

# Of the project, without being a dependency of the stage that opens it, and why that is right.
NO_INPUTS = {
    "params.yaml": "the stage's section is a parameter, its part of the model's entry in data/inputs/<model>/settings",
    "dvc.yaml": "lists which files of data/metrics belong to the grid, which is a parameter of the report",
    "versions": "all are compared with what is installed before a stage runs; those that count are dependencies",
    ".work": "scratch files, locks, and what a run that was stopped left, under a digest of all that it depends on",
    "data/logs": "how long stages took here; nothing is computed from it",
    "data/inputs": "the links themselves: what they lead to is a dependency of the stage that reads it",
    "restorelcc/stages/report/templates": "in the stage's own folder",
}
# Of the person's own folder.
OF_THE_PERSON = {
    ".cache/restorelcc/kernels": "kernel.c of the package, compiled here; only how fast it is goes into a result",
    ".cache/matplotlib": "which fonts are on the machine; the figures use the one that matplotlib brings",
}
# Files of the system that say something about the machine, or belong to Python.
SYSTEM = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/", "/lib/", "/var/lib/", "/opt/", "/bin/", "/sbin/")
# Environment variables that modules of the project itself ask for, and why none of them changes a result.
OWN_VARIABLES = {
    "DVC_STAGE": "whether DVC runs the stage",
    "PYTHONPATH": "where a stage that was started with other code than the project's finds it",
    "USE_HUB_KERNELS": "kernels of a hub are never loaded",
    "_RESTORELCC_SETTINGS_OF_ONE_RUN": "what `restorelcc run --set` changes; DVC has compared the changed settings",
    "RESTORELCC_PROGRESS": "bars or none",
    "RESTORELCC_LOG": "what is said on stderr, and in which form",
    "RESTORELCC_TABLE": "whether the table is printed when the report is there",
    "TQDM_DISABLE": "bars of other libraries or none",
    "RESTORELCC_PACKED_KERNEL": "which code computes with packed weights; `speed` writes down which one did",
    "CC": "which compiler makes that code",
    "XDG_CACHE_HOME": "where it is kept",
    "WORLD_SIZE": "processes of a launcher; a step of several is a step of one",
    "RANK": "the same",
    "LOCAL_RANK": "the same",
    "ACCELERATE_USE_FSDP": "where weights lie",
    "TOKENIZERS_PARALLELISM": "threads of the tokenizer",
    "HF_HUB_DISABLE_TELEMETRY": "what is sent",
    "OMP_WAIT_POLICY": "how idle threads wait",
    "ARROW_DEFAULT_MEMORY_POOL": "which allocator",
    "PYARROW_IGNORE_TIMEZONE": "asked by compiled code of pyarrow when it loads; no table here holds times",
}
# Packages that are loaded and are neither watched, nor needed by one that is: why none of them changes a result.
UNWATCHED = {"setuptools": "of the installation", "pip": "the same", "typing-extensions": "types"}


@dataclass
class Trace:
    """What one stage did."""

    stage: str
    opened: set[Path]  # below the project and the user's folder, by the kernel's account
    report: dict[str, Any]


@dataclass
class Run:
    """The project, the user's folder, and the traces of all stages."""

    project: Path
    home: Path
    traces: dict[str, Trace]
    command_line: set[str]  # modules that it loads before any stage


def _write_user_files(home: Path) -> None:
    save_checkpoint(home / "dense", pico.pico("llama"), pico.word_tokenizer())
    save_checkpoint(home / "theirs", pruned_model("llama"), pico.word_tokenizer())
    texts = [{"text": words(60, number)} for number in range(12)]
    for name in ("calibration", "heldout"):
        (home / f"{name}.jsonl").write_text("\n".join(map(json.dumps, texts)))
    pairs = [{"question": words(5, row), "response": words(3, 100 + row)} for row in range(30)]
    (home / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    tasks = home / "tasks"
    tasks.mkdir()
    items = [{"question": words(4, n), "choices": [words(1, n), words(1, n + 50)], "gold": n % 2} for n in range(8)]
    (home / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    (home / "shared.yaml").write_text("output_type: multiple_choice\ntest_split: test\ndoc_to_target: gold\n")
    (tasks / "utils.py").write_text("def asked(document):\n    return document['question']\n")
    (tasks / "own.yaml").write_text(
        f"include: ../shared.yaml\ntask: own\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {home}/items.jsonl}}}}\n"
        "doc_to_text: !function utils.asked\ndoc_to_choice: choices\nmetric_list: [{metric: acc}]\n"
    )


def _params(home: Path) -> dict[str, Any]:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    data = {"calibration": "calibration.jsonl", "instructions": "pairs.jsonl", "heldout": "heldout.jsonl"}
    params["models"] = {
        MODEL: {"source": str(home / "dense"), "threads": 1, "tasks": [{"name": str(home / "tasks"), "trusted": True}]}
        | {"data": {role: str(home / name) for role, name in data.items()}}
    }
    params["grid"] = {"model": [MODEL], "pruning": [PRUNING, "external-theirs"], "head_ratio": [float(RATIO)]}
    params["grid"] |= {"recovery": ["bias"], "speed": [float(RATIO)]}
    params["prune"] |= {"samples": 8, "sequence_length": 16}
    params["prune"]["external"] = {MODEL: {"theirs": {"source": str(home / "theirs")}}}
    params["probe"] |= {"steps": 5}
    params["speed"] |= {"turns": 3, "new_tokens": 1, "prefill": 8}
    for section in ("compensate", "recover"):
        params[section] |= {"epochs": 1, "learning_rates": [0.01]}
    params["evaluate"] |= {
        "bootstrap_samples": 100,
        "sanity_gate": False,
        "generation": {"new_tokens": 8, "prompts": 2},
    }
    return params


# Stages that start from a process with packages that each of them depends on; the others start from nothing.
NUMERICS = ("corpus", "dense", "capture", "prune", "extract", "probe", "compensate", "recover", "speed")
PACKAGES = ("torch", "transformers", "transformers.models.llama.modeling_llama", "safetensors.torch", "pyarrow.parquet")
HARNESS = ("lm_eval.tasks", "lm_eval.models.huggingface", "sacrebleu", "datasets")


@contextmanager
def _servers(folder: Path, environment: dict[str, str]) -> Iterator[dict[str, Path]]:
    """By the first word of stages: the process that forks them, traced from its start."""
    numerics, evaluate = folder / "numerics", folder / "evaluate"
    first = (sys.executable, "-m", "tests.traced", "serve", str(numerics), *PACKAGES)
    second = (sys.executable, "-I", "-S", str(FORKED), str(numerics), "serve", str(evaluate), *HARNESS)
    with ExitStack() as stack:
        for command, socket in ((first, numerics), (second, evaluate)):
            log = socket.with_suffix(".log")
            server = stack.enter_context(process(*command, log=log, cwd=folder / "project", **environment))
            wait_for(lambda server=server, socket=socket: socket.exists() or server.poll() is not None, "imports")
            assert server.poll() is None, log.read_text()
        yield dict.fromkeys(NUMERICS, numerics) | {"evaluate": evaluate}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("audit")
    project, home, person = (folder / name for name in ("project", "files", "person"))
    for path in (project, home, person):
        path.mkdir()
    _write_user_files(home)
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, project / name)
    for name in ("restorelcc", "versions"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "params.yaml").write_text(yaml.safe_dump(_params(home)))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))} | {
        "PYTHONPATH": f"{project}:{ROOT}",
        "HOME": str(person),
        "HF_HOME": str(person / "hub"),
        "HF_HUB_OFFLINE": "1",
        "RESTORELCC_PROGRESS": "0",
    }

    def traced(name: str, *arguments: str) -> dict[str, Any]:
        report = folder / f"{name}.json"
        command = [str(report), *arguments]
        if server := sockets.get(name.partition("_")[0].partition(" ")[0]):
            command = [sys.executable, "-I", "-S", str(FORKED), str(server), *command]
        else:
            command = [sys.executable, "-m", "tests.traced", *command]
        done = subprocess.run(
            command, cwd=project, env=environment | {"DVC_STAGE": name}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
        found: dict[str, Any] = json.loads(report.read_text())
        return found

    with ExitStack() as stack:
        sockets = stack.enter_context(_servers(folder, environment))
        command_line = set(traced("nothing")["modules"])
        pipeline = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
        traces: dict[str, Trace] = {}
        opened = stack.enter_context(Opened([project, home, person]))
        for stage in [*STAGES, "prune"]:
            external = stage in traces  # the second time, of the checkpoint that another tool pruned
            cell = CELL | ({"pruning": "external-theirs"} if external else {})
            options = " ".join(f"--{axis} {cell[axis]}" for axis in pipeline[stage].get("matrix", ()))
            command = pipeline[stage]["cmd"].replace("${item}", options).split()[1:]
            opened.read()
            name = "prune external" if external else stage
            traces[name] = Trace(stage, set(), traced(name, *command))
            traces[name].opened = opened.read()
    return Run(project, home, traces, command_line)


def _filled(text: str, cell: dict[str, str]) -> str:
    return re.sub(r"\$\{item\.(\w+)\}", lambda match: cell[match[1]], text)


def _declared(run: Run, name: str) -> list[Path]:
    """What dvc.yaml lists for the stage's cell, links followed, and what a reference among it points to."""
    trace = run.traces[name]
    cell = CELL | ({"pruning": "external-theirs"} if "external" in name else {})
    entry = yaml.safe_load((run.project / "dvc.yaml").read_text())["stages"][trace.stage]
    listed = [
        out if isinstance(out, str) else next(iter(out)) for part in ("outs", "metrics") for out in entry.get(part, [])
    ]
    paths = [run.project / _filled(path, cell) for path in [*entry["deps"], *listed]]
    for path in list(paths):
        linked = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
        paths += [link.resolve() for link in linked if link.is_symlink()]
    for path in list(paths):  # weights that stay where they are, under digests that loading them verifies
        reference = path / "model_ref.json"
        if reference.is_file():
            paths.append(Path(os.path.normpath(path / json.loads(reference.read_text())["source"])))
    return paths


def _is_within(path: Path, folders: list[Path]) -> bool:
    return any(path == folder or folder in path.parents for folder in folders)


NAMES = (*STAGES, "prune external")


def _undeclared(run: Run, name: str) -> set[str]:
    """What a stage opened below the project and the user's folder that is neither a dependency nor allowed."""
    trace, declared = run.traces[name], _declared(run, name)
    allowed = [run.project / path for path in NO_INPUTS]
    allowed += [run.project.parent / "person" / path for path in OF_THE_PERSON]
    if trace.stage == "inputs" or trace.stage.startswith("evaluate"):
        # They look for what task files refer to, and ask config.json whether a folder holds two models, to refuse it.
        allowed += [run.home / folder / "config.json" for folder in ("dense", "theirs")]
    if trace.stage == "inputs":
        allowed += [run.home / "tasks", run.home / "shared.yaml"]
    code = run.project / "restorelcc"
    return {
        str(path)
        for path in trace.opened
        if not _is_within(path, [*declared, *allowed]) and not _is_within(path.resolve(), declared)
        if code not in path.parents or not _is_of_the_command_line(run, path)
    }


def test_no_stage_is_left_out() -> None:
    assert sorted(STAGES) == sorted(("inputs", *REGISTERED, "report"))


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_a_stage_opens_is_a_dependency(run: Run, name: str) -> None:
    assert run.traces[name].opened, "nothing was seen"
    assert not _undeclared(run, name)


def _is_of_the_command_line(run: Run, path: Path) -> bool:
    """A module that the command line loads for any stage; what a stage computes with is asserted by test_dag.

    It also asserts that no stage can import these rooms, the floors above it.
    """
    compiled = path.parent.name == "__pycache__"  # also while it is written, under a longer name
    if path.suffix != ".py" and not compiled:
        return False
    source = path.parent.parent / f"{path.name.split('.')[0]}.py" if compiled else path
    parts = source.relative_to(run.project).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return module in run.command_line or parts[-1] in ("__init__", "__main__") or parts[1] in ("pipeline", "cli")


@pytest.mark.parametrize("name", NAMES)
def test_every_file_elsewhere_is_of_python_or_the_system(run: Run, name: str) -> None:
    """What Python opens outside the project and the user's folder."""
    paths = sysconfig.get_paths()
    known = [Path(paths[key]) for key in ("stdlib", "purelib", "platlib")] + [Path(sys.prefix), Path(sys.base_prefix)]
    known += [run.project, run.home, *(run.project.parent / "person" / path for path in OF_THE_PERSON)]
    known += [run.project.parent / f"{name}.json", ROOT / "tests", ROOT / "restorelcc", ROOT / "restorelcc.egg-info"]
    strange = [
        text
        for text in run.traces[name].report["files"]
        if not _is_within(Path(text), known) and not text.startswith(SYSTEM) and "/torchinductor_" not in text
    ]
    # Python tries whether the folder for scratch files takes one, by a name of eight letters.
    scratch = re.compile(re.escape(tempfile.gettempdir()) + r"/([a-z0-9_]{8}|tmp[^/]*|\.[^/]*)(/.*)?")
    assert not [text for text in strange if not scratch.fullmatch(text)]


@pytest.mark.parametrize("name", NAMES)
def test_no_environment_variable_of_our_own_changes_a_result(run: Run, name: str) -> None:
    asked = set(run.traces[name].report["environment"]["restorelcc"])
    assert asked, "nothing was seen"
    assert not asked - set(OWN_VARIABLES)


@pytest.mark.parametrize("name", NAMES)
def test_every_package_that_a_stage_loads_is_watched_or_comes_with_one_that_is(run: Run, name: str) -> None:
    """`restorelcc versions` writes the watched ones; the lock file pins what comes with them."""
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][run.traces[name].stage]["deps"]
    groups = [dep.removeprefix("versions/") for dep in deps if dep.startswith("versions/")]
    watched = {package for group in groups for package in read_groups(ROOT)[group]}
    allowed = _with_requirements(frozenset(watched | HARMLESS | set(UNWATCHED) | {"restorelcc", "PyYAML"}))
    of = packages_distributions()
    loaded = {module.partition(".")[0] for module, file in run.traces[name].report["modules"].items() if file}
    assert {"restorelcc", "yaml"} <= loaded, "nothing was seen"
    found = {_plain(package) for module in loaded - {"restorelcc", "tests"} for package in of.get(module, [])[:1]}
    assert not found - allowed


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def _with_requirements(names: frozenset[str]) -> frozenset[str]:
    """Distributions, and all that they require."""
    found: set[str] = set()
    todo = [_plain(name) for name in names]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue
        todo += [_plain(re.split(r"[ ;<>=!~\[(]", text, maxsplit=1)[0]) for text in needed]
    return frozenset(found)


def test_the_audit_can_fail(run: Run) -> None:
    """A file that a stage opened is found when its dependency is taken away."""
    text = (run.project / "dvc.yaml").read_text()
    (run.project / "dvc.yaml").write_text(text.replace("      - data/inputs/${item.model}/heldout\n", ""))
    try:
        assert _undeclared(run, "corpus") == {str(run.home / "heldout.jsonl")}
    finally:
        (run.project / "dvc.yaml").write_text(text)
