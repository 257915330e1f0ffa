"""Names, links and addresses that come from somebody else: joined to a folder here, or refused in one sentence.

A file says `weight_map: {"lm_head.weight": "/etc/passwd"}`, a folder holds a link to a key: nothing that is read from
one folder may lead out of it, for reading or for writing.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit, urlunsplit

from restorelcc.base.errors import BadInput, has_controls

LONGEST_PART, LONGEST = 255, 4096  # bytes of one part of a path, and of all, that file systems take
_DVC_OBJECT = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}")


def check_name(name: object, where: str, *, nested: bool = False) -> str:
    """A plain name, as a document gives it, of a file in its own folder; nested: or in a folder below that.

    Raises BadInput, naming `where`, for what is no text, empty, too long, absolute, holds a backslash or control
    characters, or leads elsewhere.
    """
    shown = f"{name!r:.80}"
    if not isinstance(name, str) or not name:
        raise BadInput(f"{where} has {shown} in place of the name of a file: get the folder again from its maker")
    if has_controls(name) or "\\" in name:
        raise BadInput(
            f"{where} names {shown}, with control characters or backslashes, which no file here may have: do not use "
            "this folder, or rename the file there and in the document"
        )
    parts = name.split("/")
    if len(os.fsencode(name)) > LONGEST or any(len(os.fsencode(part)) > LONGEST_PART for part in parts):
        raise BadInput(f"{where} names {shown}, which is longer than a file's name can be: give the file a shorter one")
    if PurePosixPath(name).is_absolute() or any(part in ("", ".", "..") for part in parts):
        raise BadInput(f"{where} names {shown}, which leads out of its own folder: do not use this folder")
    if len(parts) > 1 and not nested:
        raise BadInput(f"{where} names {shown}: only files in its own folder can be used, without a path before them")
    return name


def inside(folder: Path, name: object, where: str, *, nested: bool = False) -> Path:
    """folder/name, for reading or writing, of a name that the document `where` gives.

    Raises BadInput as `check_name`, and where a link on the way leads out of the folder.
    """
    path = folder / check_name(name, where, nested=nested)
    for step in (path, *path.parents[: str(name).count("/")]):
        if step.is_symlink():
            _check_link(step, folder)
    return path


def check_links(folder: Path) -> None:
    """Raises BadInput for a link in the folder, at any depth, that leads out of it.

    Two layouts that are made of links may: the hub's cache (snapshots/<commit>/<file> to blobs/<id>), and DVC's, of the
    project that the folder lies in. The folder itself may be a link.
    """
    for at, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if (path := Path(at) / name).is_symlink():
                _check_link(path, folder)


def _check_link(link: Path, folder: Path) -> None:
    root, target = Path(os.path.realpath(folder)), Path(os.path.realpath(link))
    within = target.is_relative_to(root)
    of_the_hub = root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs"
    of_dvc = _DVC_OBJECT.search(str(target)) is not None and any((up / ".dvc").is_dir() for up in root.parents)
    if not (within or of_the_hub or of_dvc):
        raise BadInput(
            f"{link} is a link that leads out of its folder, to {target}: put the file itself in its place if you made "
            "the link, and do not use the folder if somebody else did"
        )


def check_without_credentials(what: str, address: str) -> None:
    """Raises BadInput for an address that holds a password, or, as http(s) has it, a token in the place of a name."""
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise BadInput(f"{what} is {address!r:.80}, which is not a valid address ({error}): correct it") from error
    if parts.password is not None or (parts.scheme in ("http", "https") and parts.username is not None):
        raise BadInput(
            f"{what} holds a password or token, which would be kept where others read it: leave it out of the address "
            "and give it by the environment or a login"
        )


def without_credentials(address: str) -> str:
    """An address as it may be shown and kept: without a password, and over http(s) without a name too, which may be a
    token. What is no address of a server stays as it is."""
    try:
        parts = urlsplit(address)
        if not parts.scheme or "@" not in parts.netloc:
            return address
        name, _, host = parts.netloc.rpartition("@")
        kept = "" if parts.scheme in ("http", "https") else f"{name.partition(':')[0]}@"
        return urlunsplit(parts._replace(netloc=kept + host))
    except ValueError:
        return "an address that cannot be read"
