"""The user's files that entries of the grid name by a path within the project: are they in a clone?

A clone has what git tracks at its commit, and what `dvc add` tracks once it is checked out there. A whole path leads to
the same file from everywhere, and is not looked at here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flows.clones import git, place_in_repository
from restorelcc.base.data_files import data_files
from restorelcc.base.documents import parse_yaml
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.model_entry import is_of_the_hub
from restorelcc.base.packages import is_package
from restorelcc.pipeline.params import Params
from restorelcc.pipeline.watched import dvc
from restorelcc.stages.inputs.files import files_below, referred_files

_SUBMODULE = "160000"  # a clone has an empty folder there
_PATTERN = "*?["


@dataclass(frozen=True)
class Named:
    """A source of params.yaml: its key, what it says, the path that this may be, and the files that are there now, with
    those elsewhere that a task refers to."""

    key: str
    text: str
    path: Path
    files: tuple[Path, ...]
    referred: tuple[Path, ...] = ()

    @property
    def place(self) -> Path:
        """The path, or of a pattern the folder above its first part with a wildcard."""
        marked = [each for each in (self.path, *self.path.parents) if any(mark in each.name for mark in _PATTERN)]
        return self.path if self.path.exists() or not marked else marked[-1].parent


@dataclass(frozen=True)
class Committed:
    """What a commit tracks: files and links of git, and outputs of `dvc add` with the .dvc file of each."""

    files: frozenset[Path]
    added: dict[Path, Path]

    def has(self, path: Path) -> bool:
        """Whether a clone has the file: by itself, or in an added folder or behind a link."""
        return any(each in self.files or each in self.added for each in (path, *path.parents))

    def added_for(self, named: list[Named]) -> dict[Path, Path]:
        """Those of the added that sources name: they themselves, folders around them, and what lies in them."""
        places = [each.place for each in named]
        return {
            out: file
            for out, file in self.added.items()
            if any(out == place or out in place.parents or place in out.parents for place in places)
        }


def check_in_clones(params: Params, root: Path, commit: str) -> None:
    """Raises BadInput for a source that is here and of which no clone at the commit has a file: the run would miss it,
    or take a hub id for what is meant."""
    named = _named(params, root)
    committed = _committed(root, commit) if any(each.files for each in named) else Committed(frozenset(), {})
    for each in named:
        if each.files and not any(map(committed.has, each.files)):
            raise BadInput(
                f"{each.key} is {each.text!r}, which is here, but git does not track it at {commit[:9]}, and this runs "
                "in a clone: give the whole path, or `dvc add` it and commit"
            )


def not_committed(params: Params, root: Path, commit: str) -> list[str]:
    """The files that sources name and that a clone at the commit lacks, has otherwise, or still has."""
    named = _named(params, root)
    if not any(each.files for each in named):
        return []
    top, committed = place_in_repository(root)[0], _committed(root, commit)
    changed = git(root, "diff", "--name-only", "--no-relative", "--no-renames", "-z", commit)
    edited = {top / name for name in changed.split("\0") if name}
    found = {file for each in named for file in each.files + each.referred if file in edited or not committed.has(file)}
    found |= {path for path in edited if not path.exists() and any(each.path in path.parents for each in named)}
    added = committed.added_for(named)
    found |= {out for out, file in added.items() if file in edited}
    found |= _edited_since_added(root, {out: file for out, file in added.items() if file not in edited})
    return sorted(os.path.relpath(path, root.resolve()) for path in found)


def added_files(params: Params, root: Path, alias: str | None = None) -> list[str]:
    """The .dvc files, committed and seen from the project's folder, of what sources (of one model) name."""
    named = _named(params, root, alias)
    added = _committed(root, "HEAD").added_for(named) if named else {}
    return sorted({os.path.relpath(file, root.resolve()) for file in added.values()})


def bring_added(params: Params, clone: Path, alias: str | None = None, remote: str | None = None) -> None:
    """Check out what `dvc add` tracks and sources (of one model) name: from a remote, or else from the cache.

    What an earlier commit has left in the clone is replaced. Raises StageFailed where neither has it.
    """
    if not (files := added_files(params, clone, alias)):
        return
    how = ("checkout", "--force") if remote is None else ("pull", "--force", "--remote", remote)
    if dvc(clone, *how, *files, remote=remote):
        missing = "`dvc pull` it in the project" if remote is None else f"`dvc push --remote {remote}` where it is"
        raise StageFailed(f"{', '.join(files)} could not be checked out in {clone}, see above: {missing}")


def _named(params: Params, root: Path, alias: str | None = None) -> list[Named]:
    """Every source with a path that starts at the project's folder, or with a name that could be one."""
    found: dict[tuple[str, str], Named] = {}
    for model in params.grid.model if alias is None else [alias]:
        for key, text in _texts(params, model):
            if not Path(text).is_absolute() and not text.startswith("~"):
                path = Path(os.path.normpath(root.resolve() / text))
                referred = _referred(path, root) if key.endswith(".tasks") else []
                found[key, text] = Named(key, text, path, tuple(_files(key, path)), tuple(referred))
    return list(found.values())


def _texts(params: Params, alias: str) -> Iterator[tuple[str, str]]:
    """(key, text) of everything in params.yaml that may name files of a model, as the stage `inputs` reads it."""
    entry, named = params.models[alias], params.named(alias)
    if not entry.is_microworld:
        yield f"models.{alias}.source", entry.source
        if named.encoder not in (None, "auto"):
            yield "corpus.encoder", str(named.encoder)
    for role in ("calibration", "instructions", "heldout") if entry.data else ():
        text = entry.data.read(role) if entry.data else ""
        if not is_of_the_hub(text) and not is_package(text):
            yield f"models.{alias}.data.{role}", text
    for text in entry.task_names:
        yield f"models.{alias}.tasks", text
    copies = {"": named.datasets} if isinstance(named.datasets, str) else named.datasets or {}
    for name, text in copies.items():
        if not is_package(text):
            yield f"evaluate.datasets.{name}".removesuffix("."), text
    for pruning in named.prunings:
        if pruning in named.external:
            yield f"prune.external.{alias}.{pruning.partition('-')[2]}.source", named.external[pruning]


def _files(key: str, path: Path) -> list[Path]:
    """The files of a source that are here; none where they are not as they have to be, which is said when they are laid
    out."""
    if ".data." in key:
        with suppress(BadInput):
            return data_files(key, path)
        return []
    if path.is_dir():
        return files_below(path)
    return [path] if path.is_file() else []


def _referred(path: Path, root: Path) -> list[Path]:
    """What a task file or a folder of them refers to elsewhere in the repository."""
    if not (path.is_dir() or (path.is_file() and path.suffix in (".yaml", ".yml"))):
        return []
    top = place_in_repository(root)[0]
    with suppress(BadInput):
        found = [Path(os.path.normpath(each)) for each in referred_files([path], root.resolve())]
        return [each for each in found if each.is_relative_to(top)]
    return []


def _committed(root: Path, commit: str) -> Committed:
    """What a commit tracks, as paths of the working tree."""
    top = place_in_repository(root)[0]
    lines = git(root, "ls-tree", "-r", "-z", "--full-tree", commit).split("\0")
    names = [line.partition("\t")[2] for line in lines if line and not line.startswith(_SUBMODULE)]
    added: dict[Path, Path] = {}
    for name in names:
        if name.endswith(".dvc"):
            added |= dict.fromkeys(_outs(top / name, git(root, "show", f"{commit}:{name}")), top / name)
    return Committed(frozenset(top / name for name in names), added)


def _outs(file: Path, text: str) -> list[Path]:
    """Where the outputs of a .dvc file lie; none of a file that is not one of DVC's."""
    try:
        content = parse_yaml(text, str(file))
    except BadInput:
        return []
    outs = content.get("outs") if isinstance(content, dict) else None
    if not isinstance(outs, list):
        return []
    base = file.parent / str(content.get("wdir", "."))
    return [Path(os.path.normpath(base / str(out["path"]))) for out in outs if isinstance(out, dict) and "path" in out]


def _edited_since_added(root: Path, added: dict[Path, Path]) -> set[Path]:
    """Those of the added that are here with another content than their .dvc file has."""
    from dvc.dvcfile import load_file
    from dvc.repo import Repo

    if not added:
        return set()
    with Repo(str(root), _wait_for_lock=True) as repo:
        outs = [out for file in set(added.values()) for out in load_file(repo, str(file)).stage.outs]
        return {Path(out.fs_path) for out in outs if out.exists and out.changed_checksum()} & added.keys()
