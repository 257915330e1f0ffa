"""Content digests: artifacts carry those of their inputs, so that a stale or foreign one is refused."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from restorelcc.base.documents import check_there, read_document, read_json
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import work_around
from restorelcc.base.stock_files import is_of_the_tokenizer
from restorelcc.base.weights import weight_files, weights_of

REFERENCE = "model_ref.json"
PARTS = ("weights", "config", "tokenizer")  # of a model folder; each has a digest of its own in a reference
REMEMBERED = "digests.json"  # in the project's scratch folder
_LARGE = 2**20  # bytes; a smaller file is read faster than it is looked up
_SETTLED = 2 * 10**9  # nanoseconds; a file that was changed just now may change again within the clock's precision


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hex. Raises BadInput when it is missing."""
    check_there(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(content: Any) -> str:
    """SHA-256 of a value as JSON, hex, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def cached_file_digest(path: Path, work: Path | None) -> str:
    """`file_digest`, remembered in `work` by path, size, times and inode: 14 GB that stayed as they are take no time.

    work: a project's scratch folder (`Layout.work`); None: the file is read every time.
    """
    if work is None or not path.is_file() or path.stat().st_size < _LARGE:
        return file_digest(path)
    key, began, state = str(path.resolve()), time.time_ns(), _state(path)
    found = _remembered(work).get(key)
    if found is not None and found[:-1] == state:
        return str(found[-1])
    digest = file_digest(path)
    if _state(path) == state and began - state[2] > _SETTLED:
        _remember(work, key, [*state, digest])
    return digest


def _state(path: Path) -> list[int]:
    """What changes when a file's content does; the third, the inode's own time, is one that no program can set."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _remembered(work: Path) -> dict[str, list[int | str]]:
    try:
        content = read_json(work / REMEMBERED)
        return {key: entry for key, entry in content.items() if len(entry) == 6 and isinstance(entry[-1], str)}
    except (BadInput, TypeError, IndexError):
        return {}  # none yet, or damaged: what is remembered can be had again by reading


def _remember(work: Path, key: str, entry: list[int | str]) -> None:
    """Written beside and renamed: a reader sees all or nothing, and of two writers at once the later one's stay."""
    content = {path: value for path, value in _remembered(work).items() if Path(path).exists()} | {key: entry}
    with contextlib.suppress(OSError):  # a folder that cannot be written costs time, not truth
        work.mkdir(parents=True, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(prefix=f".{REMEMBERED}-", dir=work)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=0)
        Path(scratch).replace(work / REMEMBERED)  # not worth waiting for the disk


def together(digests: list[str]) -> str:
    """One digest of several files, in their order; that of one file is its own."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


def files_digest(paths: list[Path], work: Path | None = None) -> str:
    """SHA-256 over names and digests of several files, in the order of their names; work: as `cached_file_digest`."""
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        total.update(f"{path.name} {cached_file_digest(path, work)}\n".encode())
    return total.hexdigest()


def model_digest(folder: Path) -> str:
    """Identity of a model folder: its weights and config, or the reference to a hub commit or another folder's content.

    Raises BadInput when that other folder is there and has other content than it had.
    """
    if (folder / REFERENCE).is_file():
        source = referred_folder(folder)
        if source is not None and source.is_dir():
            check_unchanged(folder)
        return files_digest([folder / REFERENCE])
    if not folder.is_dir():
        raise BadInput(
            f"{folder} holds no model: give a folder with config.json and weights; `dvc repro` writes those of stages"
        )
    config = folder / "config.json"
    return files_digest([*weight_files(folder), *([config] if config.is_file() else [])], work_around(folder))


def referred_folder(folder: Path) -> Path | None:
    """The folder that `folder`'s reference leads to, whether it is there or not; None for a hub id.

    One of the same project is named from `folder`, as it is called here: data/, or a part of it, may be a link.
    """
    reference = read_document(folder / REFERENCE)
    if reference.get("files") is not None:
        return None
    return Path(os.path.normpath(folder.absolute() / reference["source"]))


def content_of(folder: Path) -> str | None:
    """One digest of a checkpoint's weights and configs, wherever it lies: of the folder that a reference leads to as it
    was recorded, else of the folder itself. None for a reference to a hub, whose files are known by other ids."""
    if (folder / REFERENCE).is_file():
        digests = read_document(folder / REFERENCE).get("digests")
    else:
        digests = folder_digests(folder, work_around(folder))
    return over_parts({part: digests[part] for part in ("weights", "config")}) if digests else None


def referred_content(folder: Path) -> str | None:
    """`content_of` a folder that refers to another one, by which a copy elsewhere is known; None for a reference to a
    hub, and for a folder with weights of its own, which its digest names."""
    return content_of(folder) if (folder / REFERENCE).is_file() else None


def over_parts(digests: dict[str, str]) -> str:
    """One digest of what `folder_digests` gives."""
    return hashlib.sha256("".join(f"{part} {digest}\n" for part, digest in digests.items()).encode()).hexdigest()


def folder_digests(folder: Path, work: Path | None) -> dict[str, str]:
    """Digest of each of PARTS of a checkpoint folder: all that a model is made of there, and nothing that lies beside.

    work: where the digests of large files are remembered, as `cached_file_digest`. Raises BadInput for a folder without
    a config or without weights, and for one with two models.
    """
    configs = [folder / name for name in ("config.json", "generation_config.json") if (folder / name).is_file()]
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder} holds no config.json: give the folder of a whole checkpoint")
    found = [*folder.iterdir(), *folder.glob("*/*.jinja")]
    tokenizer = [path for path in found if is_of_the_tokenizer(path.relative_to(folder)) and path.is_file()]
    files = {"weights": [folder / name for name in weights_of(folder).names], "config": configs, "tokenizer": tokenizer}
    return {part: files_digest(files[part], work) for part in PARTS}


def changed_parts(folder: Path) -> list[str]:
    """Which of PARTS are no longer what `folder`'s reference to another folder has recorded; none for a hub id.

    Raises BadInput when that folder is not there, or its digests were not recorded yet.
    """
    path = folder / REFERENCE
    source, recorded = referred_folder(folder), read_document(path).get("digests")
    if source is None:
        return []
    if not source.is_dir():
        raise BadInput(f"{path} points to {source}, which is not there: bring the folder back")
    if recorded is None:
        raise BadInput(f"{path} was written by an earlier version, without the digests of {source}: run `dvc repro`")
    found = folder_digests(source, work_around(folder))
    return [part for part in PARTS if recorded.get(part) != found[part]]


def check_unchanged(folder: Path) -> None:
    """Raises BadInput when the folder that `folder`'s reference points to has other content than it had."""
    if changed := changed_parts(folder):
        raise BadInput(
            f"{referred_folder(folder)} has changed since {folder / REFERENCE} was written ({' and '.join(changed)}), "
            "and what was computed from it does not belong to it any more: run `dvc repro`, or bring the old files back"
        )


def expect_digest(what: str, recorded: str | None, actual: str) -> None:
    """Raises BadInput unless an artifact's recorded input digest is that of the input now at hand."""
    if recorded != actual:
        raise BadInput(
            f"{what} (recorded {str(recorded)[:12]}, found {actual[:12]}): the artifacts do not belong together, "
            "run `dvc repro` to bring them in step"
        )
