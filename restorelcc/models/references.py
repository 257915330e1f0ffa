"""What a source in params.yaml - a folder or a hub id - refers to, pinned; and the folder that a reference leads to.

Looking at a folder takes no torch, so that light commands can.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from restorelcc.base.digest import REFERENCE, check_unchanged, folder_digests, over_parts, referred_folder
from restorelcc.base.documents import read_document, write_document
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.manifest import check_folder
from restorelcc.models.checkpoint_check import check_beside, check_checkpoint
from restorelcc.models.hub import Repository, fetch_model, model_files, resolved_commit


class Pinned(NamedTuple):
    """A hub id at a commit with {file: content id}, or a folder with the digests of its parts and one over them all."""

    source: str
    revision: str
    files: dict[str, str] | None
    digests: dict[str, str] | None


def pinned_source(key: str, source: str, revision: str | None, root: Path) -> Pinned:
    """The source as it is now. Raises BadInput naming the params key, StageFailed when the hub cannot be asked."""
    local = local_source(source, root)
    if local is not None:
        digests = folder_digests(local, Layout(root).work)
        return Pinned(str(local), over_parts(digests), None, digests)
    repository = Repository(key, source)
    commit = resolved_commit(repository, revision)
    files = {name: content for name, (content, _) in model_files(repository, commit).items()}
    return Pinned(source, commit, files, None)


def local_source(source: str, root: Path) -> Path | None:
    """The folder that a source names, counted from the project's folder; None for a hub id."""
    local = root / Path(source).expanduser()
    return local if local.is_dir() else None


def write_reference(folder: Path, pinned: Pinned) -> None:
    """Point to weights that stay where they are: a hub id at a commit, with the content ids of the files used, or a
    folder whose content had these digests."""
    folder.mkdir(parents=True)
    write_document(folder / REFERENCE, {name: value for name, value in pinned._asdict().items() if value is not None})


def make_relative(place: Path, folder: Path, named: str, root: Path) -> None:
    """Write a reference's folder of the project as a path relative to `place`, where `folder` will be published: so it
    leads there in every clone, and its digest is the same. Until then it leads nowhere.

    named: the source in params.yaml. A whole path stays one, since a clone need not have the folder.
    """
    path, relative = folder / REFERENCE, not Path(named).expanduser().is_absolute()
    source = referred_folder(folder) if relative and path.is_file() else None
    if source is not None and source.is_relative_to(root.absolute()):
        write_document(path, read_document(path) | {"source": Path(os.path.relpath(source, place)).as_posix()})


def local_folder(folder: Path, key: str | None = None, *, weights: bool = True, by_class: bool = True) -> Path:
    """The folder with the files of a model: its own, the one it refers to, or the hub's snapshot (downloaded once).

    Raises BadInput when the folder referred to has other content than it had, or a checkpoint that cannot be used
    (checkpoint_check.py); BadInput or StageFailed when the hub does not give the files, naming `key`, or else the
    folder. weights: whether they are needed, and checked too. by_class: as `check_checkpoint`.
    """
    found = _folder_of_files(folder, key)
    if weights:
        check_checkpoint(found, by_class=by_class)
    else:
        check_beside(found)
    return found


def _folder_of_files(folder: Path, key: str | None) -> Path:
    if (folder / REFERENCE).is_file():
        reference = read_document(folder / REFERENCE)
        if not isinstance(reference, dict) or not all(
            isinstance(reference.get(name), str) for name in ("source", "revision")
        ):
            raise BadInput(f"{folder / REFERENCE} names no model: delete its folder and run dvc repro")
        source, commit = reference["source"], reference["revision"]
        if (local := referred_folder(folder)) is not None:
            check_unchanged(folder)
            return local
        return fetch_model(Repository(key or str(folder), source), commit)
    if not (folder / "config.json").is_file():
        raise BadInput(
            f"{folder} holds no model: give a folder with config.json and weights; `dvc repro` writes those of stages"
        )
    check_folder(folder)
    return folder
