"""Write a restored checkpoint: the pruned one with its compensation folded in, a stock folder with its provenance."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restorelcc.base.digest import file_digest
from restorelcc.base.documents import read_json, write_json
from restorelcc.base.errors import BadInput
from restorelcc.compensation.compensation import Compensation
from restorelcc.compensation.file import read_compensation
from restorelcc.models.checkpoints import local_folder
from restorelcc.models.shards import DEFAULT_SHARD_BYTES
from restorelcc.release.export.card import CardFacts, model_card
from restorelcc.release.export.folding import added_names, added_parameters, carrying_parameters, folded_names
from restorelcc.release.export.source import Source, open_source
from restorelcc.release.export.writing import Entries, check_has_tokenizer, cut_out, write_companions, write_weights
from restorelcc.release.folders import check_apart, check_output, copy_other_files, published_folder
from restorelcc.release.original import keep_original, replaced_biases
from restorelcc.release.packed.folder import pack_in_place
from restorelcc.release.patterns import common_patterns, recorded_groups
from restorelcc.release.provenance import (
    COMPENSATION,
    FORMAT,
    OWN_FOLDER,
    RECORD,
    parents_of,
    versions,
)
from restorelcc.release.routes import Route, plan_route


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a checkpoint is written; `names` and `config` are put into the record as they are."""

    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    cut: bool = False  # cut removed heads and channels out
    packed: bool = False  # without the zeros (release/packed)
    verbatim: bool = False  # keep the source's other files as they are, and write no card
    overwrite: bool = False
    names: dict[str, Any] = field(default_factory=dict)  # model, pruning, head_ratio or recovery; method
    config: dict[str, Any] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()  # sections that `config` leaves out, since nothing says what they were
    ancestors: dict[str, Path] = field(default_factory=dict)  # see provenance.parents_of
    recorded: dict[str, str] = field(default_factory=dict)  # the same
    groups: tuple[int, ...] = ()  # see patterns.held_patterns; those that `pruned` itself records are looked for anyway
    kept: bool = True  # whether the checkpoint that is written again stays where it is
    card: CardFacts = field(default_factory=CardFacts)


def export_checkpoint(pruned: Path, compensation: Path | None, out: Path, options: ExportOptions) -> dict[str, Any]:
    """Write `out`: a stock checkpoint with model card, restorelcc.json and restorelcc/. Returns the record.

    Without a compensation, the checkpoint's own tensors are what is written: a method has changed its weights.
    Raises BadInput when the two do not belong together, when something is in the way, or when no stock checkpoint can
    carry the compensation exactly.
    """
    check_output(out, overwrite=options.overwrite)
    check_apart(out, pruned, local_folder(pruned, weights=False), *filter(None, [compensation]))
    values, metadata = (None, {}) if compensation is None else read_compensation(compensation)
    parents = parents_of(pruned, compensation, metadata, options.ancestors, options.recorded)
    if not options.kept:
        del parents["pruned"]
    with published_folder(out, overwrite=options.overwrite) as folder, _scratch(folder) as scratch:
        source = open_source(pruned, scratch)
        check_has_tokenizer(source)
        route = plan_route(source.config, values or Compensation.nothing(source.layout), source.layout)
        if options.verbatim and source.converted:
            raise BadInput(
                f"{pruned} has tensors under former names, which are written under those of today's class, so that "
                "this could not be undone: use `restorelcc export`"
            )
        if options.verbatim:
            copy_other_files(source.folder, folder)
        entries, made = _write(folder, scratch, source, route, options)
        if compensation is not None:
            keep_compensation(folder, compensation)
        if not (options.cut or source.converted):
            changed = replaced_biases(source.stored, folded_names(source, route))
            keep_original(folder, source.folder, changed, whole=options.verbatim)
        record = {
            "format": FORMAT,
            **options.names,
            "route": _described(folder, source, route, options),
            "parents": {name: parent.described(out) for name, parent in parents.items()},
            "sparsity": _sparsity(entries),
            "config": options.config,
            **({"config_unknown": list(options.unknown)} if options.unknown else {}),
            "versions": versions(),
            "made": sorted({*made, RECORD} if options.verbatim else {*made, RECORD, "README.md"}),
        }
        if not options.verbatim:
            (folder / "README.md").write_text(model_card(record, source.config, options.card), encoding="utf-8")
        record |= {"tensors": entries, "files": _digests(folder)}
        write_json(folder / RECORD, record)
        if options.packed:
            pack_in_place(folder)
    return record


def _write(
    folder: Path, scratch: Path, source: Source, route: Route, options: ExportOptions
) -> tuple[Entries, list[str]]:
    if not options.cut:
        groups = (*options.groups, *recorded_groups(source.given))
        entries = write_weights(folder, source, route, options.max_shard_bytes, groups)
        return entries, write_companions(folder, source)
    whole = scratch / "whole"
    whole.mkdir()
    write_weights(whole, source, route, options.max_shard_bytes, ())
    write_companions(whole, source)
    entries = cut_out(whole, folder, options.max_shard_bytes)
    return entries, write_companions(folder, source)


def keep_compensation(folder: Path, compensation: Path) -> None:
    """Copy the compensation file into a subfolder of the checkpoint, where no loader takes it for weights."""
    (folder / OWN_FOLDER).mkdir(exist_ok=True)
    shutil.copyfile(compensation, folder / OWN_FOLDER / COMPENSATION)


def _described(folder: Path, source: Source, route: Route, options: ExportOptions) -> dict[str, Any]:
    """The route, and the class that was written: cutting heads out may take another one than the route's."""
    written, before = route.config.model_type, route.relabelled_from
    if options.cut and (found := read_json(folder / "config.json", tagged=True)["model_type"]) != written:
        written, before = found, before or written
    return {
        "name": route.name,
        "model_type": written,
        "relabelled_from": before,
        "folded": folded_names(source, route),
        "added": added_names(source, route),
        "added_parameters": added_parameters(source, route),
        "carrying_parameters": carrying_parameters(source, route),
        "cut": options.cut,
    }


def _sparsity(entries: Entries) -> dict[str, Any]:
    targeted = {name: entry for name, entry in entries.items() if "zeros" in entry}
    total = sum(entry["shape"][0] * entry["shape"][1] for entry in targeted.values())
    zeros = sum(entry["zeros"] for entry in targeted.values())
    return {
        "targeted": total,
        "zeros": zeros,
        "share": zeros / total,
        "patterns": common_patterns([entry["patterns"] for entry in targeted.values()]),
    }


def _digests(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): file_digest(path) for path in paths}


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="export-", dir=folder.parent) as scratch:
        yield Path(scratch)
