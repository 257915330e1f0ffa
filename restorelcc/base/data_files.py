"""Which data files a source in params.yaml names: one file, every file of a folder, or those that a pattern matches."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from pathlib import Path, PurePath

from restorelcc.base.errors import BadInput

# What a name ends in, and how the file is read. A name may end in one of COMPRESSED after that: rows.jsonl.gz.
KINDS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "txt",
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# What tasks read, by the names that `datasets` has for it.
FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
READERS = (*FORMATS.values(), "text", "arrow")  # what a task file calls the data set when it names files
FOR_PEOPLE = r"(readme|licen[cs]es?)(\..*)?"  # names of readmes and licences; .dvcignore has the same
# Files of a folder that hold no rows: hidden ones, _SUCCESS and the like, readmes, licences, caches of Python.
_PASSED_OVER = re.compile(rf"[._].*|__pycache__|{FOR_PEOPLE}|.*\.pyc", re.IGNORECASE)
_SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)(?=[-._\d/]|$)", re.IGNORECASE)
_ADVICE = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the table as CSV UTF-8, or as Parquet"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), "unpack it, and name the files in it"),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".npy", ".npz"), "pickles and arrays are never read, write it as JSONL"),
    **dict.fromkeys((".arrow", ".feather"), "write it as Parquet (Dataset.to_parquet)"),
}
_SAVED = ("dataset_info.json", "state.json", "dataset_dict.json")  # what Dataset.save_to_disk puts beside its tables


def path_of(key: str, source: str, root: Path) -> Path:
    """A source as a path, counted from the project's folder. Raises BadInput for one that no path can be."""
    if not source.strip():
        raise BadInput(f"{key} is empty: name a file, a folder, a pattern or a dataset")
    try:
        return root / Path(source).expanduser()
    except RuntimeError as error:  # ~name of nobody
        raise BadInput(f"{key} is {source!r}, and there is no such user: write the whole path") from error


def data_files(key: str, path: Path) -> list[Path]:
    """The files that a source names, in the order of their paths; `key` is the setting that holds the source.

    A folder stands for all data files in it and below, a name with `*`, `?` or `[` for those that it matches; hidden
    files, readmes, licences and names that begin with `_` are passed over. Raises BadInput where there is no such file,
    and for a folder with files of other kinds, of several kinds, or of several splits.
    """
    path = _as_spelled_on_disk(path)
    if _is(path, "is_dir"):
        return _of_folder(key, path)
    if not _there(path) and any(mark in str(path) for mark in "*?["):
        return _of_pattern(key, path)
    if not _is(path, "is_file"):
        raise BadInput(f"data file {path} {_why_missing(path)}: correct its path under {key}")
    kind_of(path)
    return [path]


def kind_of(path: Path) -> str:
    """json, csv, parquet or txt. Raises BadInput for a file of another ending."""
    ending = _ending(path)
    if ending not in KINDS:
        advice = _ADVICE.get(ending, f"use {', '.join(KINDS)}")
        raise BadInput(f"data file {path} has an unknown ending: {advice}")
    if KINDS[ending] == "parquet" and path.suffix.lower() in COMPRESSED:
        raise BadInput(f"data file {path} is a compressed Parquet file, which is not read: unpack it first")
    return KINDS[ending]


def _ending(path: Path) -> str:
    """`.jsonl` of rows.JSONL.gz."""
    suffix = path.suffix.lower()
    return PurePath(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


def _is(path: Path, what: str) -> bool:
    try:
        return bool(getattr(path, what)())
    except (OSError, ValueError):  # a name that is too long, or that no file can have
        return False


def _there(path: Path) -> bool:
    return "\0" not in str(path) and os.path.lexists(path)


def _as_spelled_on_disk(path: Path) -> Path:
    """The path, or the same letters in the other form of Unicode: a Mac writes an accent as a character of its own."""
    if _there(path):
        return path
    for form in ("NFC", "NFD"):
        other = Path(unicodedata.normalize(form, str(path)))
        if _is(other, "exists"):
            return other
    return path


def _why_missing(path: Path) -> str:
    text = str(path)
    if re.search(r"(^|/)\w+:/", text):
        return "is an address, and only files of this machine are read (or datasets as hub:<id>)"
    if "\\" in text:
        return "does not exist (write the path with / in place of \\)"
    if _is(path, "is_symlink"):
        return f"is a link to {path.readlink()}, which does not exist"
    if _is(path, "exists"):
        return "is not a regular file"
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # no permission, too long a name, a zero byte in it
        return f"cannot be looked at ({getattr(error, 'strerror', None) or error})"
    names = sorted(other.name for other in path.parent.iterdir()) if _is(path.parent, "is_dir") else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f"does not exist (its folder has {near[0]!r})" if near else "does not exist"


def _of_pattern(key: str, path: Path) -> list[Path]:
    base = next(parent for parent in path.parents if parent.is_dir())
    try:
        matched = base.glob(str(path.relative_to(base)))
        found = sorted(each for each in matched if each.is_file() and not _passed_over(each.relative_to(base)))
    except (ValueError, OSError) as error:
        raise BadInput(f"{path} is not a pattern of file names ({error}): correct it under {key}") from error
    if not found:
        raise BadInput(f"no data file matches {path}: correct the pattern under {key}")
    return _of_one_kind(key, path, found)


def _of_folder(key: str, path: Path) -> list[Path]:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        raise BadInput(f"{path} is a folder of Dataset.save_to_disk: write the rows with Dataset.to_parquet instead")
    found = sorted(
        each for each in path.rglob("*") if not _passed_over(each.relative_to(path)) and _is(each, "is_file")
    )
    found = [each for each in found if each.name not in _SAVED]
    if not found:
        raise BadInput(f"the folder {path} holds no data file: correct the path under {key}")
    for each in found:
        if _ending(each) not in KINDS:
            raise BadInput(
                f"the folder {path} holds {str(each.relative_to(path))!r}, which is not a data file: move it, or name "
                f"those that are with a pattern such as {path}/*.jsonl ({key})"
            )
    splits = {split for each in found if (split := _split(each.relative_to(path)))}
    if len(splits) > 1:
        raise BadInput(
            f"the folder {path} holds files of several splits ({', '.join(sorted(splits))}): name those that you mean "
            f"with a pattern such as {path}/train* ({key})"
        )
    return _of_one_kind(key, path, found)


def _split(path: Path) -> str | None:
    found = next((match for part in path.parts if (match := _SPLIT.match(part))), None)
    return found.group(1).lower() if found else None


def _of_one_kind(key: str, path: Path, found: list[Path]) -> list[Path]:
    kinds = sorted({kind_of(each) for each in found})
    if len(kinds) > 1:
        raise BadInput(f"{path} holds files of several kinds ({', '.join(kinds)}): name those of one with a pattern")
    return found


def _passed_over(path: Path) -> bool:
    return any(_PASSED_OVER.fullmatch(part) for part in path.parts)
