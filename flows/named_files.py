"""The user's files that entries of the grid name by a path within the project: are they in a clone?

A clone has what git tracks at its commit, and what `dvc add` tracks once it is checked out there. A whole path leads to
the same file from everywhere, and is not looked at here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from flows.clones import git, place_in_repository
from restorelcc.base.cell import Cell
from restorelcc.base.data_files import data_files
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import is_of_the_hub
from restorelcc.base.packages import is_package
from restorelcc.pipeline.added import Added, differing, outs_of
from restorelcc.pipeline.params import Params
from restorelcc.pipeline.watched import dvc
from restorelcc.stages.inputs.files import files_below, referred_files

_LINK, _SUBMODULE = "120000", "160000"  # of a submodule a clone has an empty folder
_PATTERN = "*?["
_MOST_LINKS = 8  # one behind the other


@dataclass(frozen=True)
class Place:
    """A path that is named, or a pattern of paths. No part of the base, which it lies in, is a wildcard."""

    path: Path
    base: Path

    def holds(self, file: Path) -> bool:
        """Whether a file is the one that is named, lies in the folder, or is of the pattern."""
        return self.path in (file, *file.parents) or self._matches(file, whole=True)

    def concerns(self, added: Added) -> bool:
        """Whether `dvc add` tracks what is named, a part of it, or a folder around it."""
        return added.meets(self.path) or self._matches(added.path, whole=not added.is_folder)

    def _matches(self, path: Path, *, whole: bool) -> bool:
        pattern = self.path.relative_to(self.base).parts
        if not any(mark in part for part in pattern for mark in _PATTERN) or self.path.exists():
            return False
        return path.is_relative_to(self.base) and _match(path.relative_to(self.base).parts, pattern, whole=whole)


def _match(parts: tuple[str, ...], pattern: tuple[str, ...], *, whole: bool) -> bool:
    """Whether a pattern matches a path; without `whole`, also whether it may match something in a folder."""
    if not parts:
        return not whole or all(part == "**" for part in pattern)
    if not pattern:
        return False
    if pattern[0] == "**":
        return _match(parts, pattern[1:], whole=whole) or _match(parts[1:], pattern, whole=whole)
    return fnmatchcase(parts[0], pattern[0]) and _match(parts[1:], pattern[1:], whole=whole)


@dataclass(frozen=True)
class GridSource:
    """A source of params.yaml: its key, what it says, the path that this may be, and the files that are there now, with
    those elsewhere that a task refers to."""

    key: str
    text: str
    place: Place
    reads: Callable[[Path], bool]  # whether a file of the place is one that stages read
    files: tuple[Path, ...]
    referred: tuple[Path, ...] = ()
    places_referred: tuple[Place, ...] = ()

    @property
    def places(self) -> tuple[Place, ...]:
        return (self.place, *self.places_referred)


@dataclass(frozen=True)
class Committed:
    """What a commit tracks: files of git, links with what they lead to, and outputs of `dvc add`."""

    files: frozenset[Path]
    links: dict[Path, Path]
    added: dict[Path, Added]

    def has(self, file: Path, links: int = _MOST_LINKS) -> bool:
        """Whether a clone has the file: by itself, in an added folder, or behind a link that leads to it there too."""
        around = (file, *file.parents)
        if file in self.files or any(each in self.added for each in around):
            return True
        for link in around:
            if (target := self.links.get(link)) is not None:
                led_to = Path(os.path.normpath(link.parent / target / file.relative_to(link)))
                return target.is_absolute() or (links > 0 and self.has(led_to, links - 1))
        return False

    def has_some_of(self, source: GridSource) -> bool:
        """Whether a clone has a file of a source, be it another one than is here."""
        tracked = (*self.files, *self.links)
        there = any(source.place.holds(file) and source.reads(file) and self.has(file) for file in tracked)
        return there or any(map(source.place.concerns, self.added.values()))

    def added_for(self, sources: Iterable[GridSource]) -> list[Added]:
        """Those of the added that sources name: they themselves, folders around them, and what lies in them."""
        places = [place for each in sources for place in each.places]
        return [added for added in self.added.values() if any(place.concerns(added) for place in places)]


class Uncommitted(NamedTuple):
    """A file that a clone lacks, has otherwise, or still has."""

    name: str  # as seen from the project's folder
    is_in_clone: bool
    sentence: str | None = None  # of what `dvc add` tracks: what to do


def check_in_clones(params: Params, root: Path, commit: str) -> None:
    """Raises BadInput for a source that is here and of which no clone at the commit has a file: the run would miss it,
    or take a hub id for what is meant."""
    sources = [each for each in _sources(params, root) if each.files]
    committed = _committed(root, commit) if sources else None
    for each in sources:
        if committed and not any(map(committed.has, each.files)) and not committed.has_some_of(each):
            raise BadInput(
                f"{each.key} is {each.text!r}, which is here, but git does not track it at {commit[:9]}, and this runs "
                "in a clone: `git add` or `dvc add` it and commit; the whole path does where clones are on this machine"
            )


def not_committed(params: Params, root: Path, commit: str) -> list[Uncommitted]:
    """The files that sources name and that a clone at the commit lacks, has otherwise, or still has."""
    sources = _sources(params, root)
    if not any(each.files for each in sources):
        return []
    top, committed = place_in_repository(root)[0], _committed(root, commit)
    changed = git(root, "diff", "--name-only", "--no-relative", "--no-renames", "-z", commit)
    edited = {top / name for name in changed.split("\0") if name}
    named = {file for each in sources for file in (*each.files, *each.referred)}
    found = {file: committed.has(file) for file in named}
    found = {file: there for file, there in found.items() if not there or not edited.isdisjoint((file, file.resolve()))}
    gone = [path for path in edited if not path.exists()]
    found |= {path: True for path in gone if any(each.place.holds(path) and each.reads(path) for each in sources)}
    added = committed.added_for(sources)
    found |= {each.path: True for each in added if each.record in edited}
    unlike = differing([each for each in added if each.record not in edited], root)
    sentences = {each.added.path: each.in_words(root.resolve()) for each in unlike}
    found |= dict.fromkeys(sentences, True)
    return sorted(Uncommitted(_shown(path, root), there, sentences.get(path)) for path, there in found.items())


def _shown(path: Path, root: Path) -> str:
    """A path from the project's folder, as text that can be printed: a name may have bytes that are no UTF-8."""
    return os.path.relpath(path, root.resolve()).encode(errors="surrogateescape").decode(errors="replace")


def added_files(params: Params, root: Path, alias: str | None = None) -> list[str]:
    """The .dvc files, committed and seen from the project's folder, of what sources (of one model) name."""
    sources = _sources(params, root, alias)
    return _records(root, _committed(root, "HEAD").added_for(sources) if sources else [])


def _records(root: Path, added: list[Added]) -> list[str]:
    return sorted({os.path.relpath(each.record, root.resolve()) for each in added})


def bring_added(params: Params, clone: Path, alias: str | None = None, remote: str | None = None) -> None:
    """Check out what `dvc add` tracks and sources (of one model) name: from a remote, or else from the cache. Then the
    same of what the task files that came refer to.

    What an earlier commit has left in the clone is replaced, or deleted where it is tracked no more. Raises StageFailed
    where neither has it.
    """
    how = ("checkout", "--force") if remote is None else ("pull", "--force", "--remote", str(remote))
    brought: set[str] = set()
    while sources := _sources(params, clone, alias):
        committed = _committed(clone, "HEAD")
        _delete_left(sources, committed, clone)
        files = [file for file in _records(clone, committed.added_for(sources)) if file not in brought]
        if not files:
            return
        if dvc(clone, *how, *files, remote=remote):
            missing = "`dvc pull` it in the project" if remote is None else f"`dvc push --remote {remote}` where it is"
            raise StageFailed(f"{', '.join(files)} could not be checked out in {clone}, see above: {missing}")
        brought.update(files)


def _delete_left(sources: list[GridSource], committed: Committed, clone: Path) -> None:
    """Delete the files of sources that an earlier commit tracked by `dvc add`: git leaves them, and they would count.
    What a link leads to outside the clone stays."""
    top = place_in_repository(clone)[0]
    for file in {file for each in sources for file in (*each.files, *each.referred)}:
        if committed.has(file) or not file.is_relative_to(top) or not file.parent.resolve().is_relative_to(top):
            continue
        file.unlink(missing_ok=True)
        for folder in file.parents[: len(file.relative_to(top).parts) - 1]:
            with suppress(OSError):  # it holds something else
                folder.rmdir()


def _sources(params: Params, root: Path, alias: str | None = None) -> list[GridSource]:
    """Every source with a path that starts at the project's folder, or with a name that could be one."""
    from restorelcc.pipeline.run_cache import opened

    root = root.resolve()
    with opened(root) as repo:
        is_ignored = repo.dvcignore.is_ignored_file
    found: dict[tuple[str, str], GridSource] = {}
    for model in params.grid.model if alias is None else [alias]:
        for key, text, link in _texts(params, model):
            if not Path(text).is_absolute() and not text.startswith("~"):
                place = _place(root / text, root)
                at = Layout(root).inputs(Cell(model)) / link if link else None
                found[key, text] = _source(key, text, place, root, _reader(place.path, at, is_ignored))
    return list(found.values())


def _source(key: str, text: str, place: Place, root: Path, reads: Callable[[Path], bool]) -> GridSource:
    files = tuple(_files(key, place.path, reads))
    if not key.endswith(".tasks") or not (place.path.is_dir() or place.path.suffix in (".yaml", ".yml")):
        return GridSource(key, text, place, reads, files)
    paths: set[Path] = set()
    elsewhere = referred_files([place.path], root, paths) if place.path.exists() else []
    top, named = place_in_repository(root)[0], {_place(path, root) for path in paths}
    referred = [file for path in elsewhere if (file := Path(os.path.normpath(path))).is_relative_to(top)]
    kept = tuple(file for file in referred if any(each.path == file for each in named))
    return GridSource(key, text, place, reads, files, kept, tuple(named))


def _place(path: Path, root: Path) -> Place:
    path = Path(os.path.normpath(path))
    return Place(path, Path(os.path.commonpath((path, root))))


def _texts(params: Params, alias: str) -> Iterator[tuple[str, str, str | None]]:
    """(key, text, link) of everything in params.yaml that may name files of a model, as the stage `inputs` reads it;
    link: of a folder that is read in part, its name below data/inputs/<model>."""
    entry, named = params.models[alias], params.named(alias)
    if not entry.is_microworld:
        yield f"models.{alias}.source", entry.source, "model"
        if named.encoder not in (None, "auto"):
            yield "corpus.encoder", str(named.encoder), "encoder"
    for role in ("calibration", "instructions", "heldout") if entry.data else ():
        text = entry.data.read(role) if entry.data else ""
        if not is_of_the_hub(text) and not is_package(text):
            yield f"models.{alias}.data.{role}", text, None
    for text in entry.task_names:
        yield f"models.{alias}.tasks", text, None
    copies = {"": named.datasets} if isinstance(named.datasets, str) else named.datasets or {}
    for name, text in copies.items():
        if not is_package(text):
            yield f"evaluate.datasets.{name}".removesuffix("."), text, None
    for pruning in named.prunings:
        if pruning in named.external:
            key = f"prune.external.{alias}.{pruning.partition('-')[2]}.source"
            yield key, named.external[pruning], f"external/{pruning}"


def _reader(folder: Path, at: Path | None, is_ignored: Callable[[str], bool]) -> Callable[[Path], bool]:
    """Whether a file of a source is one that stages read: no hidden one, and of a folder that data/inputs links to at
    `at` one that DVC watches there, as .dvcignore says."""

    def reads(file: Path) -> bool:
        if file == folder or not file.is_relative_to(folder):  # or of a pattern
            return True
        within = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in within.parts)
        return not hidden and not (at and is_ignored(str(at / within)))

    return reads


def _files(key: str, path: Path, reads: Callable[[Path], bool]) -> list[Path]:
    """The files of a source that are here; none where they are not as they have to be, which is said when they are laid
    out."""
    if ".data." in key:
        with suppress(BadInput):
            return data_files(key, path)
        return []
    if path.is_dir():
        return list(filter(reads, files_below(path)))
    return [path] if path.is_file() else []


def _committed(root: Path, commit: str) -> Committed:
    """What a commit tracks, as paths of the working tree."""
    top = place_in_repository(root)[0]
    lines = git(root, "ls-tree", "-r", "-z", "--full-tree", commit).split("\0")
    kinds = {name: line.partition(" ")[0] for line in lines if (name := line.partition("\t")[2])}
    files = [name for name, kind in kinds.items() if kind not in (_LINK, _SUBMODULE)]
    links = {top / name: Path(git(root, "show", f"{commit}:{name}")) for name, kind in kinds.items() if kind == _LINK}
    added = [each for name in files if name.endswith(".dvc") for each in _outs(root, commit, top, name)]
    return Committed(frozenset(top / name for name in files), links, {each.path: each for each in added})


def _outs(root: Path, commit: str, top: Path, name: str) -> list[Added]:
    return outs_of(top / name, git(root, "show", f"{commit}:{name}"))
