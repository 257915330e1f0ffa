"""What a source in params.yaml - a folder or a hub id - refers to, pinned."""

from __future__ import annotations

from pathlib import Path

from restorelcc.io.digest import files_digest
from restorelcc.io.hub import Repository, model_files, resolved_commit
from restorelcc.io.tensor_files import weight_files


def pinned_source(key: str, source: str, revision: str | None, root: Path) -> tuple[str, str, dict[str, str] | None]:
    """(folder, digest of its weights and config, None) or (hub id, commit, {file: content id}).

    Raises BadInput naming the params key, StageFailed when the hub cannot be asked.
    """
    local = local_source(source, root)
    if local is not None:
        return str(local), files_digest([*weight_files(local), local / "config.json"]), None
    repository = Repository(key, source)
    commit = resolved_commit(repository, revision)
    return source, commit, {name: content for name, (content, _) in model_files(repository, commit).items()}


def local_source(source: str, root: Path) -> Path | None:
    """The folder that a source names, counted from the project's folder; None for a hub id."""
    local = root / Path(source).expanduser()
    return local if local.is_dir() else None
