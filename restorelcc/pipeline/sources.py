"""Have a project's sources changed since it was computed? DVC watches files and parameters, and never asks the hub.

The stages `dense` and `prune` record the commit of a hub model, with the content ids of the files it uses, or the
digests of a folder; the stage `corpus` records the commits of hub datasets and the digests of files. Here they are
compared with what is there now. What changed on this machine is a note: `dvc repro` sees it too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restorelcc.base.cell import Cell
from restorelcc.base.data_files import data_files
from restorelcc.base.digest import REFERENCE, cached_file_digest, changed_parts, referred_folder, together
from restorelcc.base.documents import read_document
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import ModelEntry
from restorelcc.base.stock_files import is_of_the_tokenizer
from restorelcc.base.tables import CHAT_TEMPLATE, OWN_WORDS, TOKENIZER
from restorelcc.models.hub import Repository, is_offline, resolved_commit
from restorelcc.models.references import local_source, pinned_source


@dataclass(frozen=True)
class Comparison:
    """One source compared: `stale` when what was computed is of other content than the source has now."""

    sentence: str
    stale: bool


def compare_sources(alias: str, entry: ModelEntry, layout: Layout, prunings: tuple[str, ...] = ()) -> list[Comparison]:
    """What changed at the sources of a model, its data and its `prunings` since `dense`, `corpus` and `prune` ran.

    Empty where nothing did or nothing was computed yet. A hub that cannot be asked is a comparison that says so.
    """
    found = [each for pruning in prunings for each in _folder(layout.pruned(Cell(alias, pruning)), "prune")]
    found += _files(alias, layout)
    if entry.is_microworld:
        return found
    try:
        return [*found, *_model(alias, entry, layout), *_datasets(alias, layout)]
    except (BadInput, StageFailed) as error:
        return [*found, Comparison(f"not compared with its source, which cannot be asked: {error}", stale=False)]


def _folder(folder: Path, stage: str) -> list[Comparison]:
    """Whether the folder that a model folder refers to is as it was."""
    if not (folder / REFERENCE).is_file():
        return []
    try:
        changed = changed_parts(folder)
    except BadInput as error:
        return [Comparison(f"not compared with its source: {error}", stale=False)]
    if not changed:
        return []
    return [_note(f"the {' and '.join(changed)} in {referred_folder(folder)} changed since `{stage}` ran")]


def _files(alias: str, layout: Layout) -> list[Comparison]:
    """Whether the files that the corpus was drawn from are as they were."""
    found = []
    for role, origin in _origins(alias, layout).items():
        if "sha256" not in origin:
            continue
        key = f"models.{alias}.data.{role}"
        path = layout.root / Path(origin.get("path", origin["source"])).expanduser()
        try:
            digests = [cached_file_digest(file, layout.work) for file in data_files(key, path)]
        except BadInput:
            found.append(_note(f"{key}: {path} {'cannot be read as it is now' if path.exists() else 'is gone'}"))
            continue
        if (len(digests), together(digests)) != (origin.get("files", 1), origin["sha256"]):
            found.append(_note(f"{key}: {path} changed since `corpus` ran"))
    return found


def _note(what: str) -> Comparison:
    return Comparison(f"{what}: `dvc repro` runs the stages that depend on it", stale=False)


def _model(alias: str, entry: ModelEntry, layout: Layout) -> list[Comparison]:
    folder = layout.dense(Cell(alias))
    if not (folder / REFERENCE).is_file():
        return []
    recorded, local = read_document(folder / REFERENCE), local_source(entry.source, layout.root)
    # Another source or revision in params.yaml is a change that DVC sees itself.
    if local is not None:
        return _folder(folder, "dense") if str(referred_folder(folder)) == os.path.normpath(local) else []
    if recorded["source"] != entry.source or is_offline():
        return []
    key, old = f"models.{alias}", recorded["revision"]
    if resolved_commit(Repository(key, entry.source), entry.revision) == old:
        return []
    _, new, now, _ = pinned_source(key, entry.source, entry.revision, layout.root)
    if new == old:
        return []
    before, files, revision = recorded.get("files") or {}, now or {}, entry.revision or "main"
    changed = sorted(name for name in before | files if before.get(name) != files.get(name))
    moved = f"{key}: revision {revision!r} of {entry.source} moved from {old[:12]} to {new[:12]} since `dense` ran"
    if not changed:
        return [Comparison(f"{moved}; the files in use are the same, so there is nothing to do", stale=False)]
    stages = f"dense@{alias}"
    origins = _origins(alias, layout)
    of_texts = {CHAT_TEMPLATE, TOKENIZER} & origins.keys() and any(is_of_the_tokenizer(Path(name)) for name in changed)
    if of_texts or any(OWN_WORDS in origin for origin in origins.values()):
        stages = f"corpus@{alias} {stages}"  # the old chat template is in the corpus, and rows fitted by the old tokens
    return [
        Comparison(
            f"{moved}, with other content in {', '.join(changed[:3])}: {_taken(stages)}; `revision: {old}` in "
            "params.yaml keeps the old one",
            stale=True,
        )
    ]


def _taken(stages: str) -> str:
    return f"`dvc repro --force --single-item {stages}` takes it, and `dvc repro` then brings the rest up to date"


def _origins(alias: str, layout: Layout) -> dict[str, dict[str, Any]]:
    """What the stage `corpus` has noted of its sources."""
    path = layout.corpus(Cell(alias)) / "sources.json"
    return read_document(path) if path.is_file() else {}


def _datasets(alias: str, layout: Layout) -> list[Comparison]:
    found = []
    for role, origin in _origins(alias, layout).items():
        if "revision" not in origin or is_offline():
            continue
        name = origin["source"].removeprefix("hub:").split(":")[0]
        new = resolved_commit(Repository(f"models.{alias}.data.{role}", name, "dataset"), None)
        if new != origin["revision"]:
            found.append(
                Comparison(
                    f"models.{alias}.data.{role}: the dataset {name} moved from {origin['revision'][:12]} to "
                    f"{new[:12]}; the rows that were drawn stay, and `dvc repro --force --single-item corpus@{alias}` "
                    "draws them again",
                    stale=False,
                )
            )
    return found
