"""Output folders: refused if something is in the way, written under a temporary name, renamed when complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from restorelcc.base.errors import BadInput
from restorelcc.base.manifest import MANIFEST
from restorelcc.base.names import check_links
from restorelcc.base.publish import scratch_folder, sync_all, take_place, why_not_writable
from restorelcc.base.stock_files import CODE, PICKLES
from restorelcc.base.weights import weights_of

_UNFINISHED = ".unfinished-"  # in the name of a folder beside `out` that is being written


def check_output(out: Path, *, overwrite: bool) -> None:
    """Raises BadInput when `out` is a file, or a folder with content and overwrite is not asked for, or when nothing
    can be written in the folder that it shall lie in: of a link, in that of what it leads to.
    """
    place = out.resolve()
    if Path.cwd().is_relative_to(place):
        raise BadInput(f"{out} holds the folder that this command runs in, which it would replace: give another one")
    if os.path.ismount(place):
        raise BadInput(f"{out} is where a disk is mounted, which no folder can replace: give a folder inside it")
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out} is a file: give a folder that does not exist or is empty")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise BadInput(f"{out} is not empty: give another folder, or --overwrite to replace all that is in it")
    if reason := why_not_writable(place.parent):
        raise BadInput(f"{out} cannot be written: {reason}")


def check_apart(out: Path, *sources: Path) -> None:
    """Raises BadInput when writing `out` would replace, or write into, one of the sources, or replace a link that a
    source is named by."""
    target = out.resolve()
    for source in sources:
        resolved, places = source.resolve(), _places(source)
        if any(target in (place, *place.parents) for place in (resolved, *places)) or resolved in target.parents:
            raise BadInput(f"{out} and {source} contain one another: give an output folder outside the input folder")


def _places(path: Path) -> list[Path]:
    """Where a path and each folder that it is named by lie: of a link, where the link does."""
    named = Path(os.path.normpath(path.absolute()))
    return [each.parent.resolve() / each.name for each in (named, *named.parents)]


@contextmanager
def published_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a scratch folder beside `out`; when the block ends well it takes the place of `out`.

    When the block raises, `out` is as it was. What killed ones have left beside it is deleted.
    Raises BadInput as check_output does.
    """
    check_output(out, overwrite=overwrite)
    out = out.resolve() if out.is_symlink() else out.absolute()  # what a link leads to is replaced, not the link
    with ExitStack() as held:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            scratch = held.enter_context(scratch_folder(out.parent, f".{out.name}{_UNFINISHED}", f".*{_UNFINISHED}*"))
            folder = scratch / out.name
            folder.mkdir()
        except OSError as error:
            raise BadInput(f"{out} cannot be written: {error.strerror}") from error
        yield folder
        check_output(out, overwrite=overwrite)
        sync_all(folder)  # before the old one steps aside: this is where a disk says that it is full
        take_place(folder, out, scratch)


def copy_other_files(source: Path, destination: Path, without: tuple[str, ...] = ()) -> None:
    """Copy what is no weight, index, config.json, pickle or program; without: top-level names that are left out too.

    Raises BadInput for a link that leads out of the source, whose target would be copied.
    """
    check_links(source)
    skipped = {"config.json", MANIFEST, *weights_of(source).names, *without}
    skipped |= {path.name for path in source.glob("*.safetensors*")}  # those that the library does not read too
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_file() and name.parts[0] not in skipped and path.suffix.lower() not in (*PICKLES, *CODE):
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, destination / name)
