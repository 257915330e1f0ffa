"""Checks of a checkpoint folder that need no weights: which files it has, and whether they are as written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from restorelcc.base.digest import REFERENCE, content_of, file_digest
from restorelcc.base.documents import read_document
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.names import check_links, inside
from restorelcc.base.stock_files import (
    CODE,
    CONFIGS,
    PROCESSOR_FILES,
    foreign_files,
    has_tokenizer,
    is_of_the_tokenizer,
    remote_code,
)
from restorelcc.base.weights import PACKED
from restorelcc.models.checkpoints import load_tokenizer
from restorelcc.models.tensor_files import StoredTensor, stored_tensors
from restorelcc.release.provenance import RECORD, path_digest

PRUNED = ("pruned", "recovery.pruned")  # parents whose tensors `--against` compares


class Violation(StageFailed):
    """Names what is wrong, and where; ends the command with exit code 1."""


def check_stock_only(folder: Path) -> str:
    """No pickle, no program, no config that asks for code of its own."""
    try:
        check_links(folder)
    except BadInput as error:
        raise Violation(str(error)) from error
    foreign = foreign_files(folder)
    if foreign:
        kind = "a program" if Path(foreign[0]).suffix in CODE else "a pickle"
        raise Violation(f"{folder / foreign[0]} is {kind}: a stock checkpoint holds none, and none is ever loaded here")
    asking = remote_code(folder)
    if asking is not None:
        raise Violation(f"{folder / asking} asks for custom code (auto_map): a stock checkpoint needs none")
    return "safetensors, JSON and tokenizer only"


def check_packed_weights(folder: Path) -> None:
    """No weights beside the packed ones, which are not looked at, and which others would load in their place."""
    entries = read_document(folder / PACKED).get("files")
    named = [entry.get("packed") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    for path in sorted(folder.glob("*.safetensors")):
        if path.name not in named:
            raise Violation(f"{path} does not belong to the packed checkpoint ({PACKED} does not name it): delete it")


def check_tokenizer(folder: Path) -> str:
    """The tokenizer is there and loads."""
    if not has_tokenizer(folder):
        raise Violation(f"{folder} has no tokenizer")
    try:
        return f"{type(load_tokenizer(folder)).__name__} loads"
    except BadInput as error:
        raise Violation(str(error)) from error


def check_shards(folder: Path) -> dict[str, StoredTensor]:
    """Every shard is there, whole and readable."""
    try:
        return stored_tensors(folder)
    except BadInput as error:
        raise Violation(str(error)) from error


def check_own_digests(folder: Path, record: dict[str, Any]) -> str:
    """Every file has the digest it was written with."""
    for name, digest in record["files"].items():
        path = inside(folder, name, str(folder / RECORD), nested=True)
        if not path.is_file():
            raise Violation(f"{path} is missing: it was written with the checkpoint")
        if file_digest(path) != digest:
            raise Violation(f"{path} has been changed since it was written (its digest differs)")
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        name = path.relative_to(folder)
        if str(name) not in record["files"] and (
            is_of_the_tokenizer(name) or str(name) in (*CONFIGS, *PROCESSOR_FILES)
        ):
            raise Violation(f"{path} was not written with the checkpoint, and changes what it does: delete it")
    return f"{len(record['files'])} files as they were written"


def check_parent(name: str, folder: Path, recorded: dict[str, Any], given: Path | None) -> str:
    """The parent that is given, or still lies where it was, has the digest that was recorded.

    A pruned model that was a reference, of whose content nothing is recorded (a hub id, or an earlier version), may be
    given as a folder where every tensor is compared afterwards, or where the reference still lies there.
    """
    if given is None and recorded["path"] is None:
        return f"{name} {recorded['digest'][:12]} (location unknown: not checked)"
    path = given or (folder.resolve() / recorded["path"])
    if not (path.is_dir() or path.is_file()):
        return f"{name} {recorded['digest'][:12]} (not at {recorded['path']}: not checked)"
    found = path_digest(path)
    content = recorded.get("content")  # where it was made from a reference, a copy of what that referred to will do
    if found != recorded["digest"] and not (content and path.is_dir() and content_of(path) == content):
        if given is not None and name in PRUNED and not content and _may_be_elsewhere(folder, name, recorded, given):
            return f"{name} {recorded['digest'][:12]} (the recorded digest may be of a reference to it: not compared)"
        raise Violation(
            f"{path} is not the {name} that the checkpoint was made from: it has the digest {found[:12]}, recorded is "
            f"{recorded['digest'][:12]}"
        )
    return f"{name} {found[:12]}"


def _may_be_elsewhere(folder: Path, name: str, recorded: dict[str, Any], given: Path) -> bool:
    """Whether the digest that is recorded may be that of a reference to the checkpoint in `given`. It is not where the
    parent still lies with weights of its own, nor where it refers to a folder with other content. Where it is gone,
    nothing but its tensors can tell: all of those of `pruned` are compared, of new weights the zeros alone."""
    parent = None if recorded["path"] is None else folder.resolve() / recorded["path"]
    if parent is None or not parent.is_dir():
        return name == "pruned"
    return (parent / REFERENCE).is_file() and content_of(parent) in (None, content_of(given))
