"""The options of exporting one cell of the grid, and which files of it are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from restorelcc.base.cell import AUTO, Cell
from restorelcc.base.digest import expect_digest, model_digest
from restorelcc.base.documents import read_document
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.progress import notice
from restorelcc.base.publish import Scratch
from restorelcc.base.recoveries import (
    COMPENSATIONS,
    EVERY_BIAS,
    EVERY_SITE,
    HEADS,
    MERGES,
    RECOVERIES,
    UNCHANGED,
    no_adapter,
)
from restorelcc.compensation.file import ADAPTER, COMPENSATION, DOCUMENT, MODEL
from restorelcc.models.checkpoints import copy_generation, copy_processors, load_model, local_folder, write_tokenizer
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from restorelcc.release.export.facts import cell_ancestors, cell_facts
from restorelcc.release.folders import check_apart, check_output
from restorelcc.release.patterns import recorded_groups
from restorelcc.sparsity.kept import widest, write_as_stored

_SECTIONS = ("corpus", "prune", "capture", "extract", "probe", "compensate")


@dataclass(frozen=True)
class Parts:
    """What of a cell is written: a checkpoint, and a compensation of it or an adapter, or neither."""

    checkpoint: Path
    compensation: Path | None = None
    adapter: Path | None = None
    work: Path | None = None  # for scratch files, where there is an adapter to merge


def cell_parts(cell: Cell, layout: Layout, merge: str | None = None) -> Parts:
    """The files of a cell. merge: a key of MERGES.

    Raises BadInput for an adapter that is not to be merged, for anything else that is, and for a result of another
    pruned model.
    """
    if merge is not None and merge not in MERGES:
        raise BadInput(f"--merge {merge[:80]!r}: it is {' or '.join(MERGES)}")
    if merge is not None and (cell.recovery is None or RECOVERIES[cell.recovery].ships != "adapter"):
        raise BadInput(f"--merge is for methods that leave an adapter, and {method_name(cell)} does not: leave it out")
    if cell.recovery is None:
        return Parts(layout.pruned(cell), layout.compensation(cell))
    if RECOVERIES[cell.recovery].ships == "adapter" and merge is None:
        raise BadInput(no_adapter(cell.recovery))
    folder = layout.recovered(cell)
    document = read_document(folder / DOCUMENT)
    what = f"the result in {folder} was made for another pruned model"
    expect_digest(what, document["parents"].get("pruned"), model_digest(layout.pruned(cell)))
    if merge is not None and document.get("no_change"):
        return Parts(layout.pruned(cell))  # the adapter adds nothing
    if merge is not None:
        return Parts(layout.pruned(cell), adapter=folder / ADAPTER, work=layout.work)
    checkpoint = folder / MODEL if document["kind"] == "checkpoint" else layout.pruned(cell)
    return Parts(checkpoint, path if (path := folder / COMPENSATION).is_file() else None)


def method_name(cell: Cell, sites: tuple[str, ...] = ()) -> str:
    """The name that `restore --method` has for how a cell was recovered; sites: what `compensate` was to train."""
    return cell.recovery or (EVERY_BIAS if set(sites) == set(EVERY_SITE) else HEADS)


def cell_options(
    cell: Cell,
    section: Callable[[str, str], BaseModel | None],
    layout: Layout,
    *,
    base_model: str | None = None,
    licence: str | None = None,
    merge: str | None = None,
) -> ExportOptions:
    """Names, settings, ancestors and card of a cell; section: by model and name, with what the model puts over it, or
    None where it is not known, which the record says then."""
    names = (*_SECTIONS[:4], "recover") if cell.recovery else _SECTIONS
    given = {name: section(str(cell.model), name) for name in names}
    config: dict[str, Any] = {name: each.model_dump(mode="json") for name, each in given.items() if each is not None}
    if own := _settings(cell, layout):
        config[names[-1]] = own
    unknown = tuple(name for name in names if name not in config)
    if unknown:
        notice(
            "export",
            f"the record leaves out the settings of {', '.join(unknown)}, for dvc.lock does not say that this result "
            "goes back to them: run the stages by `restorelcc run` or `dvc repro`, then export again",
        )
    named = {"model": cell.model, "pruning": cell.pruning} | _recovered_how(cell, layout)
    return ExportOptions(
        names=named | {"method": _method(cell, config, layout, merge)},
        config=config,
        unknown=unknown,
        ancestors=cell_ancestors(cell, layout),
        recorded=_recorded(cell, layout),
        groups=recorded_groups(layout.pruned(cell)),
        card=cell_facts(cell, layout, base_model=base_model, licence=licence, variant=merge and MERGES[merge]),
    )


def _recovered_how(cell: Cell, layout: Layout) -> dict[str, Any]:
    """The recovery, or the head ratio; of `auto` the one that was chosen."""
    if cell.recovery is not None:
        return {"recovery": cell.recovery}
    if cell.head_ratio == AUTO:
        return {"head_ratio": read_document(layout.training(cell))["head_ratio"], "head_ratio_auto": True}
    return {"head_ratio": float(cell.head_ratio or 0)}


def _method(cell: Cell, config: dict[str, Any], layout: Layout, merge: str | None) -> dict[str, str]:
    """Name, a line, and what became of the weights: of a method that may change them, whether it did."""
    sites = tuple(config.get("compensate", {}).get("sites", ()))
    name = method_name(cell, sites)
    method = (COMPENSATIONS | RECOVERIES)[name]
    further = [site for site in sites if site != "o"]
    if name == HEADS and further:
        biases = f"a trained bias on every {', '.join(further)}"
        method = replace(method, does=f"{method.does}, and {biases}" if "o" in sites else biases)
    kept = {"biases": "kept", "checkpoint": "trained", "adapter": MERGES.get(merge or "", "merged")}
    weights = kept[method.ships]
    if cell.recovery is not None and method.ships != "biases":
        document = read_document(layout.recovered(cell) / DOCUMENT)
        weights = UNCHANGED if document.get("no_change") or document.get("weights_unchanged") else weights
    return {"name": name, "does": method.does, "weights": weights}


def _settings(cell: Cell, layout: Layout) -> dict[str, Any] | None:
    """What the result was trained with, as it recorded it: params.yaml may have been edited since."""
    path = layout.training(cell) if cell.recovery is None else layout.recovered(cell) / DOCUMENT
    settings: dict[str, Any] | None = read_document(path).get("settings") if path.is_file() else None
    return settings


def _recorded(cell: Cell, layout: Layout) -> dict[str, str]:
    """Digests of what another recovery was made from, by the names of its own record."""
    if cell.recovery is None:
        return {}
    parents = read_document(layout.recovered(cell) / DOCUMENT)["parents"]
    return {f"recovery.{name}": digest for name, digest in parents.items()}


def export_cell(parts: Parts, out: Path, options: ExportOptions, merge: str | None = None) -> dict[str, Any]:
    """Write a cell's checkpoint, an adapter merged into it first. Returns the record; raises as export_checkpoint."""
    if parts.adapter is None:
        return export_checkpoint(parts.checkpoint, parts.compensation, out, options)
    assert merge is not None
    check_output(out, overwrite=options.overwrite)  # before the whole model is loaded for it
    check_apart(out, parts.checkpoint, local_folder(parts.checkpoint, weights=False), parts.adapter)
    with _merged(parts, MERGES[merge]) as checkpoint:
        return export_checkpoint(checkpoint, None, out, replace(options, kept=False))


@contextmanager
def _merged(parts: Parts, variant: str) -> Iterator[Path]:
    """A scratch checkpoint of the weights with the adapter in them, which the whole model is loaded for; what it does
    not touch is as it was stored."""
    from restorelcc.compensation.adapter import with_adapter  # imports peft

    assert parts.adapter is not None and parts.work is not None
    folder = local_folder(parts.checkpoint)
    stored = stored_tensors(folder)
    model = load_model(folder, widest(stored), torch.device("cpu"))
    merged, _ = with_adapter(model, parts.adapter, variant, stored)
    with Scratch(parts.work, "merged") as scratch:
        written = Path(scratch)
        write_as_stored(merged, stored, written)
        write_tokenizer(parts.checkpoint, written)
        copy_processors(folder, written)
        copy_generation(parts.checkpoint, written)
        yield written
