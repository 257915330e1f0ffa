"""The whole chain on one model without DVC and Prefect: corpus ... compensate in a work folder, then export.

The work folder is laid out like a project; a run that was stopped goes on where it was, and a stage whose settings or
inputs have changed runs again, with all that come after it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from restorelcc.base.cell import Cell
from restorelcc.base.digest import cached_file_digest, folder_digests
from restorelcc.base.documents import read_json, write_json
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.progress import notice
from restorelcc.pipeline.params import Params, load_params
from restorelcc.pipeline.stages import STAGES

MODEL = "model"  # its key in the work folder's params.yaml
GIVEN = "given"  # of an already pruned checkpoint: external-given
CHAIN = ("corpus", "dense", "capture_dense", "prune", "capture_pruned", "extract", "probe", "compensate")
_SECTIONS = ("corpus", "dense", "prune", "capture", "extract", "probe", "compensate", "baseline", "evaluate", "report")
_HELDOUT = 1_000  # texts at most, of the instructions: nothing is evaluated on them
_FORMAT = 2  # raise when a finished stage of before must not be taken for one of now


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to restore, by which data, and where to work. `pruned` or `pruning` is None."""

    dense: str
    pruned: str | None
    pruning: str | None
    head_ratio: str
    instructions: str
    calibration: str | None
    work: Path
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    threads: int = 0
    overrides: tuple[str, ...] = field(default_factory=tuple)


@dataclass(frozen=True)
class Restored:
    """Where the pieces lie that are exported."""

    cell: Cell
    layout: Layout
    params: Params


def run_chain(request: Request) -> Restored:
    """Run every stage that is not done yet. Raises BadInput or StageFailed as the stages do."""
    request.work.mkdir(parents=True, exist_ok=True)
    layout = Layout(request.work.resolve())
    params_file = layout.root / "params.yaml"
    params_file.write_text(yaml.safe_dump(_project(request), sort_keys=False), encoding="utf-8")
    params = load_params(params_file, request.overrides)
    cell = params.cell(MODEL, params.grid.pruning[0], request.head_ratio)
    own = hashlib.sha256(f"{_FORMAT} {_inputs(request)}".encode()).hexdigest()
    for stage, fingerprint in _fingerprints(params, own):
        done = layout.work / "done" / f"{stage}.json"
        if done.is_file() and read_json(done)["fingerprint"] == fingerprint and _there(stage, cell, layout):
            notice("restore", f"{stage} is done")
            continue
        done.unlink(missing_ok=True)
        _run(stage, cell, params, layout)
        write_json(done, {"fingerprint": fingerprint})
    return Restored(cell, layout, params)


def _run(stage: str, cell: Cell, params: Params, layout: Layout) -> None:
    entry = STAGES[stage]
    own = Cell(**{axis: getattr(cell, axis) for axis in entry.axes})
    model = params.models[MODEL].part_for(entry.folder)
    entry.imported()(own, params.section(MODEL, entry.folder), model, layout)


def _fingerprints(params: Params, own: str) -> Iterator[tuple[str, str]]:
    """(stage, digest of all that its result depends on): its settings, and those of every stage before it."""
    total = hashlib.sha256(f"{own} {params.models[MODEL].model_dump_json()} {params.grid.pruning}".encode())
    for stage in CHAIN:
        total.update(f"{stage} {params.section(MODEL, STAGES[stage].folder).model_dump_json()}".encode())
        if "head_ratio" in STAGES[stage].axes:
            total.update(str(params.grid.head_ratio).encode())
        yield stage, total.hexdigest()


def _there(stage: str, cell: Cell, layout: Layout) -> bool:
    return all(path.exists() for path in STAGES[stage].paths(layout, cell))


def _inputs(request: Request) -> str:
    """Digests of what is on this machine; hub ids stand for themselves."""
    work = Layout(request.work.resolve()).work
    found: list[str] = []
    for name in (request.dense, request.pruned, request.instructions, request.calibration):
        path = Path(name).expanduser() if name else None
        if path is not None and path.is_dir():
            found += folder_digests(path, work).values()
        else:
            found.append(cached_file_digest(path, work) if path is not None and path.exists() else str(name))
    return " ".join(found)


def _project(request: Request) -> dict[str, Any]:
    """params.yaml of the work folder."""
    dense = _source("--dense", request.dense)
    sections: dict[str, Any] = {name: {} for name in _SECTIONS}
    sections["corpus"] = {"heldout": _HELDOUT}
    pruning = request.pruning
    if request.pruned is not None:
        pruning = f"external-{GIVEN}"
        sections["prune"] = {"external": {MODEL: {GIVEN: {"source": _source("--pruned", request.pruned)}}}}
        # The checkpoint is pruned already: what its pruning cost is measured on the little text that is at hand.
        sections["prune"]["sequence_length"] = 128
    entry: dict[str, Any] = {"source": dense, "revision": request.revision, "data": _data(request)}
    entry |= {"dtype": request.dtype, "device": request.device, "threads": request.threads}
    grid = {"model": [MODEL], "pruning": [pruning], "head_ratio": [_number(request.head_ratio)]}
    return {"grid": grid, "models": {MODEL: entry}, **sections}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadInput(f"--head-ratio {text!r} is not a number: give the share of heads, for example 0.10") from None


def _source(option: str, text: str) -> str:
    """A folder as an absolute path, or a hub id. Raises BadInput for a path to nowhere."""
    path = Path(text).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if path.exists() or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise BadInput(f"{option} {text!r} is not a folder: give the folder of a checkpoint, or a hub id")
    return text


def _data(request: Request) -> dict[str, str]:
    """The model's data. Texts that were not given - for perplexity, and for an already pruned model also to calibrate
    by - are questions and responses of the instructions, which the stage `corpus` reads as it reads all data."""
    instructions = _data_source("--instructions", request.instructions, "alpaca")
    calibration = (
        instructions if request.calibration is None else _data_source("--calibration", request.calibration, "c4")
    )
    return {"instructions": instructions, "calibration": calibration, "heldout": instructions}


def _data_source(option: str, source: str, preset: str) -> str:
    """A file as an absolute path, or a dataset's name as it is. Raises BadInput for a path to nowhere."""
    from restorelcc.stages.corpus.hub_rows import hub_data

    if hub_data(option, source) is not None:
        return source
    path = Path(source).expanduser()
    if not path.is_file():
        raise BadInput(
            f"{option} {source!r} is no file: give a .jsonl, .json, .csv, .parquet or .txt file, `{preset}`, or "
            "hub:<dataset>"
        )
    return str(path.resolve())
