"""What a source in params.yaml - a folder or a hub id - refers to, pinned."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from restorelcc.base.digest import folder_digests
from restorelcc.base.layout import Layout
from restorelcc.models.hub import Repository, model_files, resolved_commit


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
