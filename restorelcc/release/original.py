"""The data needed to get the pruned checkpoint back, bit for bit, stored in a subfolder of the restored checkpoint."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from restorelcc.base.digest import file_digest
from restorelcc.base.documents import Form, checked_form, parse_json, read_json, write_json
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.manifest import MANIFEST
from restorelcc.base.names import check_name, inside
from restorelcc.base.stock_files import ORIGINAL, TOKENIZER_CONFIG
from restorelcc.base.weights import weights_of
from restorelcc.models.config_check import check_config
from restorelcc.models.safetensors_header import decoded, read_raw, tensors_of
from restorelcc.models.shards import raw_bytes
from restorelcc.models.tensor_files import StoredTensor, stored_tensors
from restorelcc.models.tensors import read_all_tensors, write_tensors
from restorelcc.release.provenance import OWN_FOLDER

_DOCUMENT, _BIASES = ORIGINAL, "original.safetensors"


def keep_original(folder: Path, source: Path, replaced: dict[str, Tensor], *, whole: bool) -> None:
    """Write restorelcc/original.json: the source's config, index and file headers, and its tokenizer's config where it
    was changed; and the biases that were changed.

    whole: all its other files are in the folder too, so that its manifest will hold again.
    """
    own = folder / OWN_FOLDER
    own.mkdir(exist_ok=True)
    weights = weights_of(source)
    files = {
        name: {
            "header": base64.b64encode(read_raw(source / name)).decode(),
            "sha256": file_digest(source / name),
        }
        for name in weights.files
    }
    manifest = MANIFEST if whole and (source / MANIFEST).is_file() else None
    tokenizer = TOKENIZER_CONFIG if _differs(source / TOKENIZER_CONFIG, folder / TOKENIZER_CONFIG) else None
    named = [name for name in ("config.json", weights.index, manifest, tokenizer) if name is not None]
    texts = {name: (source / name).read_bytes().decode() for name in named}  # with its line ends
    write_json(own / _DOCUMENT, {"texts": texts, "files": files})
    if replaced:
        write_tensors(own / _BIASES, replaced, {})


def _differs(own: Path, written: Path) -> bool:
    return own.is_file() and written.is_file() and own.read_bytes() != written.read_bytes()


def can_be_taken_out(folder: Path) -> bool:
    """Whether the folder holds the data needed to get the pruned checkpoint back."""
    return (folder / OWN_FOLDER / _DOCUMENT).is_file()


def original_config(folder: Path) -> dict[str, Any]:
    """The pruned checkpoint's config.json. Raises BadInput for one that no model can have."""
    path = folder / OWN_FOLDER / _DOCUMENT
    config = parse_json(_document(folder)["texts"]["config.json"], f"{path}: the config that was kept", tagged=True)
    check_config(path, config)
    return config


def original_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the pruned checkpoint, from the restored one's tensors and the biases kept, one at a time."""
    stored, kept = stored_tensors(folder), _kept_biases(folder)
    for entry in _document(folder)["files"].values():
        for name in _names(base64.b64decode(entry["header"])):
            yield name, kept[name] if name in kept else _found(stored, name, folder).read()


def write_original(folder: Path, out: Path) -> list[str]:
    """Write the pruned checkpoint's weights, index and configs as they were, byte for byte. Returns the names of those
    that are text.

    Raises StageFailed when a file does not have its original digest.
    """
    document, stored, kept = _document(folder), stored_tensors(folder), _kept_biases(folder)
    where = str(folder / OWN_FOLDER / _DOCUMENT)
    for name, entry in document["files"].items():
        header = base64.b64decode(entry["header"])
        with inside(out, name, where).open("wb") as file:
            file.write(header)
            for tensor in _names(header):
                file.write(raw_bytes(kept[tensor] if tensor in kept else _found(stored, tensor, folder).read()))
        if file_digest(out / name) != entry["sha256"]:
            raise StageFailed(f"{name} cannot be restored exactly: weights in {folder} have been changed since")
    for name, text in document["texts"].items():
        inside(out, name, where).write_bytes(text.encode())
    return list(document["texts"])


def _document(folder: Path) -> dict[str, Any]:
    if not can_be_taken_out(folder):
        raise BadInput(
            f"{folder} does not hold the data needed to get the pruned checkpoint back ({OWN_FOLDER}/{_DOCUMENT}): it "
            "was not written by `restorelcc export` or `compensation apply`, or heads were cut out of it; use the "
            "pruned checkpoint itself"
        )
    return _checked(folder / OWN_FOLDER / _DOCUMENT)


class _File(Form):
    header: str  # base64
    sha256: str


class _Original(Form):
    texts: dict[str, str]
    files: Annotated[dict[str, _File], Field(min_length=1)]


def _checked(path: Path) -> dict[str, Any]:
    """The document, of which nothing is taken at its word: names of safetensors files with header and digest, and the
    texts of configs and an index. Raises BadInput for anything else."""
    again, content = "export the checkpoint again", read_json(path)
    found = checked_form(content, _Original, f"{path} is not what `restorelcc export` writes", again)
    if "config.json" not in found.texts:
        raise BadInput(f"{path} is not what `restorelcc export` writes (texts.config.json is missing): {again}")
    for name, entry in found.files.items():
        if not check_name(name, str(path)).endswith(".safetensors"):
            raise BadInput(f"{path} names {name!r:.80} as a file of weights: {again}")
        try:
            decoded(base64.b64decode(entry.header, validate=True))
        except ValueError as error:
            raise BadInput(f"{path} holds no header of {name} that can be read: {again}") from error
    for name in found.texts:
        known = name in ("config.json", MANIFEST, TOKENIZER_CONFIG) or check_name(name, str(path)).endswith(
            ".safetensors.index.json"
        )
        if not known:
            raise BadInput(f"{path} names {name!r:.80}, which is no config, index or manifest: {again}")
    return content


def _kept_biases(folder: Path) -> dict[str, Tensor]:
    path = folder / OWN_FOLDER / _BIASES
    return read_all_tensors(path)[0] if path.is_file() else {}


def _found(stored: dict[str, StoredTensor], name: str, folder: Path) -> StoredTensor:
    if name not in stored:
        raise BadInput(f"{folder} has no tensor {name}: it is incomplete")
    return stored[name]


def _names(header: bytes) -> list[str]:
    """Names of the tensors in the order in which they lie in the file."""
    entries = tensors_of(decoded(header))
    return sorted(entries, key=lambda name: entries[name]["data_offsets"])


def replaced_biases(stored: dict[str, StoredTensor], names: list[str]) -> dict[str, torch.Tensor]:
    """The source's own values of the biases that take something up; nothing for those that it does not have."""
    return {name: stored[name].read() for name in names if name in stored}
