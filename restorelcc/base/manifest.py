"""The digests of all files of a folder, kept in it: what a checkpoint's own formats cannot say of themselves.

Weights and tokenizers are other libraries' formats and carry no digest. A folder that is an artifact has a small JSON
file more, which transformers and lm-eval pass over; it is checked when the folder is opened.
"""

from __future__ import annotations

from pathlib import Path

from restorelcc.base.digest import cached_file_digest, file_digest
from restorelcc.base.documents import AGAIN, read_document, write_document
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import work_around
from restorelcc.base.names import inside

MANIFEST = "restorelcc-manifest.json"
_DEPTH = 3  # folders of an artifact, at most, that a file lies below


def write_manifest(folder: Path) -> None:
    """Note SHA-256 of every file in the folder and below. The last thing that is written into it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    digests = {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
    write_document(folder / MANIFEST, {"files": digests})


def check_folder(folder: Path) -> None:
    """Raises BadInput when a file that was written into the folder, or below it, is gone or has other content now.

    A folder that no stage of ours has written has no manifest, and nothing to be held against. Large files that have
    the same times and inode as when they were last read are not read again (`cached_file_digest`).
    """
    for path, digest in _listed(folder).items():
        if path.is_relative_to(folder):
            _check(path, digest)


def check_file(path: Path) -> None:
    """`check_folder` for one file; raises BadInput too when it is none of those that were written there."""
    listed = _listed(path.parent)
    if listed and path not in listed:
        raise BadInput(f"{path} is none of the files that were written into its folder: {AGAIN}")
    if listed:
        _check(path, listed[path])


def _check(path: Path, digest: str) -> None:
    if not path.is_file():
        raise BadInput(f"{path} is missing, though it was written: {AGAIN}")
    if cached_file_digest(path, work_around(path)) != digest:
        raise BadInput(f"{path} was changed since it was written, or the disk has damaged it: {AGAIN}")


def _listed(folder: Path) -> dict[Path, str]:
    """File to digest, by the manifest of the folder or of the nearest one above; empty where there is none."""
    for above in [folder, *folder.parents][: _DEPTH + 1]:
        if (above / MANIFEST).is_file():
            files = read_document(above / MANIFEST).get("files")
            if not isinstance(files, dict):
                raise BadInput(f"{above / MANIFEST} lists no files: {AGAIN}")
            where = str(above / MANIFEST)
            return {inside(above, name, where, nested=True): str(digest) for name, digest in files.items()}
    return {}
