"""One line as a stage begins and one as it ends: which of how many it is, and what it found.

The numbers are read from the artifacts that the stage has just written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from restorelcc.base.cell import Cell, ratio_label
from restorelcc.base.documents import read_document, read_json
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.tables import opened
from restorelcc.pipeline.params import Params
from restorelcc.pipeline.stages import STAGES, Stage, grid_cells
from restorelcc.stages.report.tables import size_text

AXES = ("model", "pruning", "head_ratio", "recovery")


def place(params: Params, name: str, cell: Cell) -> str:
    """`[7/33] prune tiny wanda-0.5`; without the numbers for a cell that the grid does not have."""
    runs = [(stage, each) for stage in STAGES for each in _cells(params, STAGES[stage])]
    title = f"{name} {cell}"
    return f"[{runs.index((name, cell)) + 1}/{len(runs)}] {title}" if (name, cell) in runs else title


def _cells(params: Params, stage: Stage) -> list[Cell]:
    """Cells of the grid that the stage runs for: those that name exactly its axes."""
    cells = grid_cells(params.grid)
    own = [cell for cell in cells if tuple(axis for axis in AXES if getattr(cell, axis) is not None) == stage.axes]
    timed = list(map(ratio_label, params.grid.speed))
    return [cell for cell in own if cell.head_ratio in timed] if stage.timed else own


def duration(seconds: float) -> str:
    """`3.2 s`, `4 min 10 s`, `2 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def last_time(layout: Layout, name: str, cell: Cell) -> str | None:
    """How long it took here before; None where it never ran, or did in no time."""
    log = layout.log(name, cell)
    try:
        seconds = read_json(log)["seconds"] if log.is_file() else 0
    except (BadInput, KeyError):  # a note for people, which nothing depends on
        return None
    return f"took {duration(seconds)} last time" if isinstance(seconds, int | float) and seconds >= 10 else None


def outcome(name: str, layout: Layout, cell: Cell) -> str:
    """What a stage found, in a few words with numbers. Raises BadInput for a damaged artifact."""
    return _OUTCOMES[name](layout, cell)


def _corpus(layout: Layout, cell: Cell) -> str:
    folder = layout.corpus(cell)
    names = {"calibration": "calibration texts", "train": "training pairs", "valid": "validation pairs"}
    names |= {"contrast": "contrast tuples", "heldout": "held-out texts"}
    counts = {words: _rows(folder / f"{table}.parquet") for table, words in names.items()}
    return ", ".join(f"{count:,} {words}" for words, count in counts.items() if count is not None)


def _rows(path: Path) -> int | None:
    if not path.is_file():
        return None
    with opened(path) as file:
        return int(file.metadata.num_rows)


def _dense(layout: Layout, cell: Cell) -> str:
    folder = layout.dense(cell)
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    return f"a checkpoint of {size_text(sum(sizes))}" if sizes else "a reference to the checkpoint"


def _captured(folder: Path) -> str:
    tables = sorted(folder.glob("layer-*.parquet"))
    size = sum(path.stat().st_size for path in tables)
    return f"{len(tables)} layers, {_rows(tables[0]) or 0:,} rows each, {size_text(size)}"


def _prune(layout: Layout, cell: Cell) -> str:
    found = read_document(layout.pruned(cell) / "sparsity.json")
    errors = [layer["error"] for layer in found["layers"] if layer.get("error") is not None]
    error = f", mean relative error of a layer {sum(errors) / len(errors):.3f}" if errors else ""
    return f"{100 * found['achieved']:.2f} % of the targeted weights are zero{error}"


def _extract(layout: Layout, cell: Cell) -> str:
    return f"components of every head, {size_text(layout.components(cell).stat().st_size)}"


def _probe(layout: Layout, cell: Cell) -> str:
    with opened(layout.heads(cell)) as file:
        ranked = file.read(["layer", "head", "rank"]).sort_by("rank").to_pylist()
    best = ", ".join(f"{row['layer']}.{row['head']}" for row in ranked[:5])
    return f"{len(ranked)} heads ranked; the best (layer.head) are {best}"


def _compensate(layout: Layout, cell: Cell) -> str:
    found = read_document(layout.training(cell))
    return f"{len(found['heads'])} heads; {training(found)}"


def training(found: dict[str, Any]) -> str:
    """`validation loss 3.22 -> 0.163, learning rate 0.03`, from what training wrote."""
    losses = {each["candidate"]: each["valid_loss"] for each in found.get("candidates") or []}
    chosen, before = found.get("chosen") or {}, losses.get("no change")
    if chosen.get("candidate") == "no change":
        return f"no training lowered the validation loss of {before:.4g}: nothing is changed"
    rate = chosen.get("learning_rate")
    loss = f"validation loss {'' if before is None else f'{before:.4g} -> '}{found['valid_loss']:.4g}"
    return loss if rate is None else f"{loss}, learning rate {rate:g}"


def _recover(layout: Layout, cell: Cell) -> str:
    found = read_document(layout.recovered(cell) / "recovery.json")
    trained = found.get("training") or {}
    told = "; nothing is changed" if found.get("no_change") else ""
    told = f"; {training(trained)}" if "valid_loss" in trained else told
    return f"{found['what']}{told}"


def _evaluate(layout: Layout, cell: Cell) -> str:
    found = read_document(layout.metrics(cell))
    told = [] if found["mean"] is None else [f"mean accuracy {100 * found['mean']:.1f} %"]
    told.append(f"perplexity {found['perplexity']['value']:,.2f}")
    recovered = found.get("recovered") or {}
    if recovered.get("mean") is not None:
        ends = recovered.get("ci95") or [None]
        interval = "" if None in ends else f" [{', '.join(f'{100 * end:.1f}' for end in ends)}]"
        told.append(f"{100 * recovered['mean']:.1f} %{interval} of the lost accuracy recovered")
    return ", ".join(told)


def _speed(layout: Layout, cell: Cell) -> str:
    found = read_document(layout.speed(cell))["versions"]
    told = [f"{name} {version['decode']['times_dense'][1]:.2f}" for name, version in found.items() if name != "dense"]
    return f"decoding, times the dense model's speed: {', '.join(told)}"


_OUTCOMES: dict[str, Callable[[Layout, Cell], str]] = {
    "corpus": _corpus,
    "dense": _dense,
    "capture_dense": lambda layout, cell: _captured(layout.dense_activations(cell)),
    "prune": _prune,
    "capture_pruned": lambda layout, cell: _captured(layout.pruned_activations(cell)),
    "extract": _extract,
    "probe": _probe,
    "compensate": _compensate,
    "recover": _recover,
    "evaluate_dense": _evaluate,
    "evaluate_pruned": _evaluate,
    "evaluate_restored": _evaluate,
    "evaluate_recovered": _evaluate,
    "speed": _speed,
}
