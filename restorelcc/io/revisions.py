"""Has what a project was computed from moved since? DVC knows files and parameters, it never asks the hub.

The stage `dense` records the commit of a hub model, with the content ids of the files it uses, or the digest of a
folder; the stage `corpus` records the commits of hub datasets. Here they are compared with what is there now.
"""

from __future__ import annotations

from dataclasses import dataclass

from restorelcc.core.cell import Cell
from restorelcc.core.errors import BadInput, StageFailed
from restorelcc.core.model_entry import ModelEntry
from restorelcc.io.checkpoints import REFERENCE
from restorelcc.io.corpus_tables import CHAT_TEMPLATE, TOKENIZER
from restorelcc.io.documents import read_json
from restorelcc.io.hub import Repository, is_offline, resolved_commit
from restorelcc.io.layout import Layout
from restorelcc.io.references import local_source, pinned_source


@dataclass(frozen=True)
class Comparison:
    """One source compared: `stale` when what was computed is of other content than the source has now."""

    sentence: str
    stale: bool


def compare_sources(alias: str, entry: ModelEntry, layout: Layout) -> list[Comparison]:
    """What changed at the sources of a model and its data since the stages `dense` and `corpus` ran on them.

    Empty where nothing did or nothing was computed yet. A hub that cannot be asked is a comparison that says so.
    """
    if entry.is_microworld:
        return []
    try:
        return [*_model(alias, entry, layout), *_datasets(alias, layout)]
    except (BadInput, StageFailed) as error:
        return [Comparison(f"not compared with its source, which cannot be asked: {error}", stale=False)]


def _model(alias: str, entry: ModelEntry, layout: Layout) -> list[Comparison]:
    path = layout.dense(Cell(alias)) / REFERENCE
    recorded = read_json(path) if path.is_file() else {}
    local = local_source(entry.source, layout.root)
    # Another source or revision in params.yaml is a change that DVC sees itself.
    if recorded.get("source") != (str(local) if local else entry.source) or (local is None and is_offline()):
        return []
    key, old = f"models.{alias}", recorded["revision"]
    if local is None and resolved_commit(Repository(key, entry.source), entry.revision) == old:
        return []
    _, new, files = pinned_source(key, entry.source, entry.revision, layout.root)
    if new == old:
        return []
    if files is None:
        changed_here = f"{key}: the weights or the config in {local} changed since `dense` ran"
        return [Comparison(f"{changed_here}: {_taken(f'dense@{alias}')}", stale=True)]
    before, revision = recorded.get("files") or {}, entry.revision or "main"
    changed = sorted(name for name in before | files if before.get(name) != files.get(name))
    moved = f"{key}: revision {revision!r} of {entry.source} moved from {old[:12]} to {new[:12]} since `dense` ran"
    if not changed:
        return [Comparison(f"{moved}; the files in use are the same, so nothing is to be done", stale=False)]
    stages = f"dense@{alias}"
    if {CHAT_TEMPLATE, TOKENIZER} & _origins(alias, layout).keys() and any(map(_is_of_the_tokenizer, changed)):
        stages = f"corpus@{alias} {stages}"  # the old chat template is in the corpus, and rows fitted by the old tokens
    return [
        Comparison(
            f"{moved}, with other content in {', '.join(changed[:3])}: {_taken(stages)}; `revision: {old}` in "
            "params.yaml stays with the old one",
            stale=True,
        )
    ]


def _taken(stages: str) -> str:
    return f"`dvc repro --force --single-item {stages}` takes it, and `dvc repro` then brings the rest in step"


def _is_of_the_tokenizer(name: str) -> bool:
    return not name.endswith(".safetensors") and not name.startswith(("config.", "generation_config.", "model."))


def _origins(alias: str, layout: Layout) -> dict[str, dict[str, str]]:
    """What the stage `corpus` has noted of its sources."""
    path = layout.corpus(Cell(alias)) / "sources.json"
    return read_json(path) if path.is_file() else {}


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
                    "draws them anew",
                    stale=False,
                )
            )
    return found
