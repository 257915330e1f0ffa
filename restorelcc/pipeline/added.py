"""What `dvc add` tracks: where it lies, and whether what is here is what the .dvc file names."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from restorelcc.base.documents import parse_yaml, read_text
from restorelcc.base.errors import BadInput


class Added(NamedTuple):
    """A file or folder that a .dvc file tracks."""

    path: Path
    record: Path  # the .dvc file
    is_folder: bool = False
    is_import: bool = False  # of another repository or address, by `dvc import`

    def meets(self, path: Path) -> bool:
        """Whether this is the path, lies in it, or is a folder around it."""
        return self.path == path or self.path in path.parents or path in self.path.parents


class Differing(NamedTuple):
    """What is here with another content than its .dvc file names."""

    added: Added
    is_version: bool  # the cache has it: another version, of which nothing would be lost; anything else is an edit
    is_cached: bool  # the cache has what the .dvc file names

    def in_words(self, root: Path) -> str:
        """A sentence with paths as seen from the project's folder."""
        name, record = (os.path.relpath(each, root) for each in (self.added.path, self.added.record))
        if self.is_version:
            command = "checkout" if self.is_cached else "pull"
            return f"`{name}` is another version than {record} names: run `dvc {command} {record}`"
        return f"`{name}` is not what {record} names: run `dvc add {name}` and commit it"


def outs_of(record: Path, text: str) -> list[Added]:
    """What a .dvc file with this text tracks; nothing for a file that is not one of DVC's."""
    try:
        content = parse_yaml(text, str(record))
    except BadInput:
        return []
    outs = content.get("outs") if isinstance(content, dict) else None
    if not isinstance(outs, list):
        return []
    base = record.parent / str(content.get("wdir", "."))
    return [
        Added(
            Path(os.path.normpath(base / str(out["path"]))),
            record,
            is_folder=str(out.get("md5", "")).endswith(".dir"),
            is_import="deps" in content,
        )
        for out in outs
        if isinstance(out, dict) and "path" in out
    ]


def added_here(root: Path) -> list[Added]:
    """What every .dvc file of the DVC repository tracks that a folder is in; nothing where there is none."""
    top = next((each for each in (root, *root.parents) if (each / ".dvc").is_dir()), None)
    if top is None:
        return []
    found: list[Added] = []
    for at, folders, files in os.walk(top):
        if ".dvc" in folders and Path(at) != top:  # a repository of its own
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]  # such as .dvc itself, and clones in .work
        for record in (Path(at) / name for name in files if name.endswith(".dvc")):
            with suppress(BadInput):
                found += outs_of(record, read_text(record))
    return found


def differing(added: Iterable[Added], root: Path) -> list[Differing]:
    """Those that are here with another content than their .dvc files name, by the names of these. What DVC cannot read
    is passed over: it says so itself."""
    wanted = {each.path: each for each in added}
    if not wanted:
        return []
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    found = []
    with Repo(str(root), _wait_for_lock=True) as repo:
        for record in sorted({each.record for each in wanted.values()}):
            with suppress(DvcException, OSError):
                for out in (out for stage in repo.stage.load_all(str(record)) for out in stage.outs):
                    known = wanted.get(Path(out.fs_path))
                    if known is None or not (out.exists and out.use_cache and out.hash_info):
                        continue
                    if (here := out.get_hash()) != out.hash_info:
                        is_version = out.cache.exists(here.value)
                        found.append(Differing(known, is_version, not out.changed_cache()))
    return found
