"""The whole chain on one model in one command: a project in a work folder, and DVC there up to `compensate`.

A run that was stopped continues there, and a stage whose settings, inputs, code or packages have changed runs
again, with all that come after it: DVC decides, as in every project.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restorelcc.base.cell import Cell
from restorelcc.base.data_files import data_files, path_of
from restorelcc.base.documents import read_text, read_yaml, yaml_text
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import HUB_PREFIX, OWN_PREFIX, PAPER, SELF
from restorelcc.base.package_data import SOURCE as PACKAGE
from restorelcc.base.package_data import is_of_the_package
from restorelcc.base.packages import gguf_file, is_package, package_folder
from restorelcc.base.recoveries import COMPENSATIONS, EVERY_BIAS, EVERY_SITE, HEADS, RECOVERIES
from restorelcc.pipeline.inputs import lay_out_inputs
from restorelcc.pipeline.named_sources import problems
from restorelcc.pipeline.params import Params, checked
from restorelcc.pipeline.reproduce import reproduce
from restorelcc.pipeline.running import held_lock, stage_name
from restorelcc.pipeline.scaffold import init_scratch, write_project
from restorelcc.pipeline.stages import STAGES
from restorelcc.stages.inputs.files import check_whole

MODEL = "model"  # its key in the work folder's params.yaml
GIVEN = "given"  # of an already pruned checkpoint: external-given
TARGET = "compensate"
_RECOVER = "recover"  # the target of every other method
MEASURED = "report"  # the target where something is to be measured
_SECTIONS = ("corpus", "dense", "prune", "capture", "extract", "probe", "compensate", "recover", "evaluate", "report")
_PAPERS_RATIO = 0.1
_HELDOUT = 1_000  # texts at most, of the instructions: nothing is evaluated on them


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to restore, with which data, and where to work. Either `pruned` or `pruning` is None."""

    dense: str
    pruned: str | None
    pruning: str | None
    head_ratio: str | None  # None: the paper's, for every method that chooses heads
    instructions: str
    calibration: str | None
    work: Path
    method: str = HEADS  # a key of COMPENSATIONS or RECOVERIES
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    threads: int = 0
    heldout: str | None = None  # texts that dense, pruned and restored model are measured on; None measures nothing
    tasks: tuple[str, ...] = ()  # and tasks, by lm-eval's names or as folders
    overrides: tuple[str, ...] = field(default_factory=tuple)


@dataclass(frozen=True)
class Restored:
    """Where to find the parts of the export."""

    cell: Cell
    layout: Layout
    params: Params


@contextmanager
def _held(work: Path) -> Iterator[None]:
    """The work folder, made where it is not there, for one `restore` at a time: another one waits, for it would put its
    own settings there. Raises BadInput for a folder that cannot be made, or that is somebody else's."""
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"the work folder {work} cannot be made ({error.strerror}): give another one by --work"
        ) from error
    _check_work(work)
    with held_lock(Layout(work.resolve()).work / "locks" / "restore"):
        yield


def params_of(request: Request) -> Params:
    """The settings that a run has, with those that `--set` puts over them and with whole paths. Raises BadInput for a
    wrong one, and for files that are not there."""
    return _settled(request)[1]


def _settled(request: Request) -> tuple[dict[str, Any], Params]:
    content = _project(request)
    checked(content, request.overrides)
    _count_from_here(content)
    return content, checked(content)


@contextmanager
def run_chain(request: Request) -> Iterator[Restored]:
    """Run what is not done yet, and hold the work folder until all is read that is wanted of it.

    Raises BadInput, before anything is made where it can, and StageEnded or StageFailed when a stage does not succeed.
    """
    content, params = _settled(request)
    other = request.method not in COMPENSATIONS
    of = (None, request.method) if other else (str(params.grid.head_ratio[0]), None)
    cell, target = params.cell(MODEL, params.grid.pruning[0], *of), _RECOVER if other else TARGET
    with _held(request.work):
        layout = Layout(request.work.resolve())
        write_project(layout.root, yaml_text(content))
        init_scratch(layout.root)
        lay_out_inputs(params, MODEL, layout)
        if found := problems(params, MODEL, layout):
            raise BadInput("; ".join(found))
        own = Cell(**{axis: getattr(cell, axis) for axis in STAGES[target].axes})
        reproduce(layout, stage_name(target, own) if request.heldout is None else MEASURED, "restore")
        yield Restored(cell, layout, params)


def _check_work(folder: Path) -> None:
    """Raises BadInput for a folder that an earlier `restore` has not made: its files would be replaced."""
    found = sorted({path.name for path in folder.iterdir()} - {Layout(folder).work.name})  # where the lock lies
    if not found:
        return
    try:
        params = read_yaml(folder / "params.yaml")
    except BadInput:
        params = None
    own = isinstance(params, dict) and list(params.get("models") or {}) == [MODEL]
    config = folder / ".dvc" / "config"
    if not own or (config.is_file() and "no_scm" not in read_text(config)):
        raise BadInput(
            f"--work {folder} holds {found[0]!r} and was not made by `restore`, which would replace what is there: "
            "give an empty folder, or that of an earlier `restore`"
        )


def _project(request: Request) -> dict[str, Any]:
    """params.yaml of the work folder."""
    dense = model_source("--dense", request.dense)
    sections: dict[str, Any] = {name: {} for name in _SECTIONS}
    sections["corpus"] = {"heldout": _HELDOUT if request.heldout is None else None}
    pruning = request.pruning
    if request.pruned is not None:
        pruning = f"external-{GIVEN}"
        source = model_source("--pruned", request.pruned, gguf=False)
        sections["prune"] = {"external": {MODEL: {GIVEN: {"source": source}}}}
        # The checkpoint is pruned already: what its pruning cost is measured on the little text that is at hand.
        sections["prune"]["sequence_length"] = 128
    entry: dict[str, Any] = {"source": dense, "revision": request.revision, "data": _data(request)}
    entry |= {"dtype": request.dtype, "device": request.device, "threads": request.threads}
    entry["tasks"] = list(request.tasks)
    grid: dict[str, Any] = {"model": [MODEL], "pruning": [pruning], "head_ratio": []} | {"recovery": [], "speed": []}
    _name_method(request, grid, sections)
    return {"grid": grid, "models": {MODEL: entry}, **sections}


def _task(given: str) -> str:
    """A name of lm-eval as it is; a folder or file of tasks in full. Raises BadInput for one that names its data from
    the current folder."""
    path = Path(given).expanduser()
    if not (path.is_dir() or path.suffix in (".yaml", ".yml")):
        return given
    check_whole(f"--evaluate {given}", [path])
    return str(path.resolve())


def _count_from_here(content: dict[str, Any]) -> None:
    """Put whole paths, in place, where options and `--set` name files and folders from the current folder: the work
    folder is another. Raises BadInput for data and an encoder that are not there."""
    entry = content["models"][MODEL]
    data, tasks = entry.get("data") or {}, entry.get("tasks") or []
    tasks[:] = [task | {"name": _task(task["name"])} if isinstance(task, dict) else _task(task) for task in tasks]
    data |= {role: data_source(f"--{role}", data[role], PAPER["data"][role]) for role in PAPER["data"] if role in data}
    for sections in (content, entry.get("settings") or {}):
        evaluate, corpus = sections.get("evaluate") or {}, sections.get("corpus") or {}
        datasets, encoder = evaluate.get("datasets"), corpus.get("encoder")
        if isinstance(datasets, dict):
            evaluate["datasets"] = {name: _whole(folder) for name, folder in datasets.items()}
        elif datasets is not None and not is_package(datasets):
            evaluate["datasets"] = _whole(datasets)
        if encoder not in (None, "auto"):
            corpus["encoder"] = model_source("--set corpus.encoder", encoder, gguf=False)


def _whole(folder: str) -> str:
    return str(Path(folder).expanduser().absolute())


def _name_method(request: Request, grid: dict[str, Any], sections: dict[str, Any]) -> None:
    """The method as an axis of the grid, and what else makes it. Raises BadInput for a ratio that nothing would use."""
    ratio = None if request.head_ratio is None else _number(request.head_ratio)
    if request.method in COMPENSATIONS:
        grid["head_ratio"] = [_PAPERS_RATIO if ratio is None else ratio]
        if request.method == EVERY_BIAS:
            sections["compensate"]["sites"] = list(EVERY_SITE)
        return
    grid["recovery"] = [request.method]
    if "heads" in RECOVERIES[request.method].sites:
        sections["recover"]["head_ratio"] = _PAPERS_RATIO if ratio is None else ratio
    elif ratio is not None:
        raise BadInput(f"--head-ratio is for methods that choose heads, and {request.method} does not: leave it out")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadInput(f"--head-ratio {text!r} is not a number: give the share of heads, for example 0.10") from None


def model_source(option: str, text: str, *, gguf: bool = True) -> str:
    """A folder or, unless not `gguf`, a GGUF file as an absolute path, a package, or a hub id. Raises BadInput for a
    path to nowhere."""
    path = Path(text).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if gguf and (file := gguf_file(option, text, Path.cwd())) is not None:
        return text if is_package(text) else str(file.resolve())
    if path.exists() or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise BadInput(f"{option} {text!r} is not a folder: give the folder of a checkpoint, or a hub id")
    return text


def _data(request: Request) -> dict[str, str]:
    """The model's data. Texts that were not given - for perplexity, and for an already pruned model also to calibrate
    by - are questions and responses of the instructions, which the stage `corpus` reads as it reads all data."""
    instructions = data_source("--instructions", request.instructions, "alpaca")
    calibration = (
        instructions if request.calibration is None else data_source("--calibration", request.calibration, "c4")
    )
    questions = instructions.removeprefix(OWN_PREFIX)  # where the model answers them itself, what is there already
    heldout = questions if request.heldout is None else data_source("--heldout", request.heldout, "wikitext")
    return {"instructions": instructions, "calibration": calibration, "heldout": heldout}


def data_source(option: str, source: str, preset: str) -> str:
    """Files as an absolute path; the name of a dataset or of the package of data as it is. Raises BadInput for a path
    to nowhere, and for a package that is not installed."""
    from restorelcc.stages.corpus.hub_rows import hub_data, named_dataset

    if source == SELF and option == "--calibration":
        return SELF
    if source.startswith(OWN_PREFIX) and option != "--heldout":
        return OWN_PREFIX + data_source(option, source.removeprefix(OWN_PREFIX), preset)
    if is_of_the_package(source):
        package_folder(option, source)
        return source
    if named_dataset(option, source) is not None:
        if source.startswith(HUB_PREFIX):  # of a folder here: the stage runs elsewhere
            hub_data(option, source, Path.cwd())
        return source
    path = path_of(option, source, Path.cwd())
    try:
        data_files(option, path)
    except BadInput as error:
        raise BadInput(
            f"{option} {source!r} is not usable: {error}, or give `{preset}`, hub:<dataset> or {PACKAGE}"
        ) from error
    return str(path.absolute())
