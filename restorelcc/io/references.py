"""What a source in params.yaml - a folder or a hub id - refers to, pinned."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from restorelcc.core.errors import BadInput
from restorelcc.io.digest import REFERENCE, files_digest
from restorelcc.io.documents import read_json
from restorelcc.io.hub import Repository, model_files, resolved_commit
from restorelcc.io.layout import Layout, work_around
from restorelcc.io.stock_files import is_of_the_tokenizer
from restorelcc.io.weights import weights_of

PARTS = ("weights", "config", "tokenizer")


class Pinned(NamedTuple):
    """A hub id at a commit with {file: content id}, or a folder with the digests of its PARTS and one over them all."""

    source: str
    revision: str
    files: dict[str, str] | None
    digests: dict[str, str] | None


def pinned_source(key: str, source: str, revision: str | None, root: Path) -> Pinned:
    """The source as it is now. Raises BadInput naming the params key, StageFailed when the hub cannot be asked."""
    local = local_source(source, root)
    if local is not None:
        digests = folder_digests(local, Layout(root).work)
        told = "".join(f"{part} {digest}\n" for part, digest in digests.items())
        return Pinned(str(local), hashlib.sha256(told.encode()).hexdigest(), None, digests)
    repository = Repository(key, source)
    commit = resolved_commit(repository, revision)
    files = {name: content for name, (content, _) in model_files(repository, commit).items()}
    return Pinned(source, commit, files, None)


def local_source(source: str, root: Path) -> Path | None:
    """The folder that a source names, counted from the project's folder; None for a hub id."""
    local = root / Path(source).expanduser()
    return local if local.is_dir() else None


def folder_digests(folder: Path, work: Path | None) -> dict[str, str]:
    """Digest of each of PARTS of a checkpoint folder: all that a model is made of there, and nothing that lies beside.

    work: where the digests of large files are remembered, as `cached_file_digest`. Raises BadInput for a folder without
    a config or without weights, and for one with two models.
    """
    configs = [folder / name for name in ("config.json", "generation_config.json") if (folder / name).is_file()]
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder} holds no config.json: give the folder of a whole checkpoint")
    found = [*folder.iterdir(), *folder.glob("*/*.jinja")]
    tokenizer = [path for path in found if is_of_the_tokenizer(path.relative_to(folder)) and path.is_file()]
    files = {"weights": [folder / name for name in weights_of(folder).names], "config": configs, "tokenizer": tokenizer}
    return {part: files_digest(files[part], work) for part in PARTS}


def changed_parts(folder: Path) -> list[str]:
    """Which of PARTS are no longer what `folder`'s reference to another folder has recorded; none for a hub id.

    Raises BadInput when that folder is not there, or its digests were not recorded yet.
    """
    path = folder / REFERENCE
    reference: dict[str, Any] = read_json(path)
    if reference.get("files") is not None:
        return []
    source, recorded = Path(reference["source"]), reference.get("digests")
    if not source.is_dir():
        raise BadInput(f"{path} points to {source}, which is not there: bring the folder back")
    if recorded is None:
        raise BadInput(f"{path} was written by an earlier version, without the digests of {source}: run `dvc repro`")
    found = folder_digests(source, work_around(folder))
    return [part for part in PARTS if recorded.get(part) != found[part]]


def check_unchanged(folder: Path) -> None:
    """Raises BadInput when the folder that `folder`'s reference points to has other content than it had."""
    if changed := changed_parts(folder):
        source = read_json(folder / REFERENCE)["source"]
        raise BadInput(
            f"{source} has changed since {folder / REFERENCE} was written ({' and '.join(changed)}), and what was "
            "computed from it does not belong to it any more: run `dvc repro`, or bring the old files back"
        )
