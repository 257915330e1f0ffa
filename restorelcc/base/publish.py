"""Artifacts appear whole or not at all: written to a scratch place, then renamed; and locks on folders."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import lock_descriptor

from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout

SCRATCH = ".scratch"  # below data/, or what a link or a mount in it leads to; ignored by git and DVC


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock on the folder, which dies with the process; yields False when another has it and wait is False."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            if not lock_descriptor(descriptor, blocking=wait):
                yield False
                return
            if folder.is_dir() and os.path.samestat(os.fstat(descriptor), folder.stat()):
                yield True
                return
        finally:
            os.close(descriptor)
        # The process that had the lock has deleted the folder meanwhile: begin again with a new one.


@contextmanager
def published(layout: Layout, *destinations: Path) -> Iterator[tuple[Path, ...]]:
    """Yield one scratch path per destination; when the block ends well, rename each to its destination.

    The block creates a file or a folder at every scratch path. When it raises, nothing under data/ has changed. What a
    killed process has left in its scratch place is deleted by the next one that writes. Scratch and destination are on
    one file system, whatever in data/ is a link or a mount.
    """
    with ExitStack() as held:
        homes = [scratch_home(layout, destination) for destination in destinations]
        scratch = {home: held.enter_context(scratch_folder(home)) for home in dict.fromkeys(homes)}
        places = [scratch[home] for home in homes]
        pairs = enumerate(zip(places, destinations, strict=True))
        paths = tuple(place / f"{number}-{destination.name}" for number, (place, destination) in pairs)
        yield paths
        for path in paths:  # before anything steps aside: this is where a disk says that it is full
            sync_all(path)
        for path, destination in zip(paths, destinations, strict=True):
            take_place(path, destination, path.parent)


def scratch_home(layout: Layout, destination: Path) -> Path:
    """Where scratch for a destination lies: in .work, or where data/ or a part of it is a link or a mount, in there."""
    there = _nearest(destination.parent)
    inside = [path for path in destination.parents if path == layout.data or layout.data in path.parents]
    homes = [layout.work, *(path / SCRATCH for path in reversed(inside) if path.is_dir())]
    return next((home for home in homes if _can_rename(_nearest(home), there)), there / SCRATCH)


def _nearest(path: Path) -> Path:
    """The path, or the folder above it that is there; a link that leads nowhere is not."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def _can_rename(one: Path, other: Path) -> bool:
    """Whether a name can go from one folder to the other. Of two mounts of one disk only the kernel knows that not."""
    if one.stat().st_dev != other.stat().st_dev:
        return False
    nothing = f"{SCRATCH}-{os.getpid()}"  # is not there: the kernel looks at the mounts first
    try:
        (one / nothing).rename(other / nothing)
    except OSError as error:
        return error.errno != errno.EXDEV
    return True


def check_writable(layout: Layout) -> None:
    """Raises BadInput where nothing can be written: before anything is computed, and not at its end."""
    for sentence in (why_no_link(layout), *map(why_not_writable, (layout.data, layout.work))):
        if sentence:
            raise BadInput(sentence)


def why_no_link(layout: Layout) -> str | None:
    """A sentence where data/ is a link in a git repository: DVC then refuses each result after it was computed."""
    if layout.data.is_symlink() and (layout.root / ".git").exists():
        return f"{layout.data} is a link, and DVC refuses results outside of the git repository: mount the disk there"
    return None


def why_not_writable(folder: Path) -> str | None:
    """A sentence where no file can be made in the folder, or the folder itself cannot; None where all is well."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        what = "a link that leads nowhere" if there.is_symlink() else "no folder"
        return f"{there} is {what}: mount or make what it leads to, or move it away"
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        return f"{there} is on a file system that is mounted read-only: mount it for writing"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} may not be written by this user: change its owner or its permissions"
    return None


@contextmanager
def scratch_folder(home: Path, prefix: str = "write-", left: str = "write-*") -> Iterator[Path]:
    """A folder that is locked as long as its process lives, and deleted at the end; so are those that nobody locks.

    `left` is the pattern of such folders.
    """
    with ExitStack() as held:
        with locked(home):  # nobody finds another one's folder between its making and its locking
            _delete_unlocked(home, left)
            scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=home))
            held.enter_context(locked(scratch))
        held.callback(shutil.rmtree, scratch, ignore_errors=True)
        yield scratch


class Scratch:
    """A scratch folder as `scratch_folder` makes it, until `cleanup`, or until this object or its process ends."""

    def __init__(self, home: Path, kind: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        held = ExitStack()
        # Inside the folder that is locked: what is written there may lock its own.
        self.name = str(held.enter_context(scratch_folder(home, f"write-{kind}-")) / kind)
        Path(self.name).mkdir()
        self._ended = weakref.finalize(self, held.close)

    def cleanup(self) -> None:
        """Delete it."""
        self._ended()

    def __enter__(self) -> str:
        return self.name

    def __exit__(self, *_: object) -> None:
        self.cleanup()


def _delete_unlocked(home: Path, pattern: str) -> int:
    left = left_behind(home, pattern)
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return len(left)


def left_behind(home: Path, pattern: str = "write-*") -> list[Path]:
    """Scratch folders of processes that were killed: nobody locks them."""
    return [path for path in sorted(home.glob(pattern)) if not path.is_symlink() and _is_free(path)]


def _is_free(folder: Path) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # gone meanwhile, or no folder
        return False
    try:
        return lock_descriptor(descriptor, blocking=False)
    finally:
        os.close(descriptor)


def delete_left(home: Path) -> int:
    """Delete the scratch folders of killed processes; how many there were."""
    if not home.is_dir():
        return 0
    with locked(home):
        return _delete_unlocked(home, "write-*")


def take_place(path: Path, destination: Path, scratch: Path) -> None:
    """Rename a file or folder to its place; a folder that is there steps aside into `scratch`, and goes with it.

    Its content has to be on the disk already (`sync_all`). When this raises, or is interrupted, what was there is.
    """
    aside = scratch / f"old-{destination.name}"
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        if destination.is_dir() and not destination.is_symlink():  # no folder is renamed over one that has files
            destination.replace(aside)
        path.replace(destination)
    except BaseException:
        if aside.exists() and not os.path.lexists(destination):
            aside.replace(destination)
        raise
    _sync(destination.parent)


def put(path: Path, destination: Path) -> None:
    """Rename a file or a folder to its place on the same file system, when its content is on the disk: after a power
    cut either the old one is there or the new one, whole.
    """
    sync_all(path)
    path.replace(destination)
    _sync(destination.parent)


def replace_text(path: Path, content: str) -> None:
    """Write a text file, whose folder is made, so that a kill or a full disk leaves the old one or the new one. A link
    stays, and the file that it leads to is written; permissions stay."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(content, encoding="utf-8", newline="")  # line ends as they are in the text
        if path.exists():
            shutil.copymode(path, scratch)
        put(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def sync_all(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk."""
    if path.is_symlink():
        return
    for at, _, names in os.walk(path):
        for name in names:
            _sync(Path(at) / name)
        _sync(Path(at))
    if path.is_file():
        _sync(path)


def _sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk; a file system that cannot say so is fine."""
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
