"""Small safetensors artifacts (components, compensation), byte-identical for identical content.

Each carries the digest of its header and its numbers in its metadata, and is read whole to be held against it.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from restorelcc.base.documents import SEAL, check_seal, check_there
from restorelcc.base.errors import BadInput
from restorelcc.models.safetensors_header import METADATA, PIECE, encoded, read_header, sealed_digest


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors with string metadata; the same content gives the same bytes. A file that is there stays as it is
    until the new one is whole."""
    unsealed, sealed = (path.with_name(path.name + end) for end in (".unsealed", ".sealed"))
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unsealed, metadata)
        # safetensors writes metadata keys in an order that differs from run to run; tensor offsets count from the end
        # of the header, so the header can be written again in sorted order without touching the data.
        header, begin = read_header(unsealed)
        header[METADATA] = metadata | {SEAL: sealed_digest(unsealed, header, begin)}
        with unsealed.open("rb") as source, sealed.open("wb") as file:
            source.seek(begin)
            file.write(encoded(header, sort_keys=True))
            while piece := source.read(PIECE):
                file.write(piece)
        sealed.replace(path)
    finally:
        for scratch in (unsealed, sealed):
            scratch.unlink(missing_ok=True)


def read_all_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor and the metadata. Raises BadInput when the file is missing or damaged."""
    return _read(path, None)


def read_tensors(
    path: Path, names: tuple[str, ...], *, sealed: bool = True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The named tensors and the metadata. Raises BadInput when the file or a tensor is missing or damaged.

    sealed: whether the file has to carry its digest; one that another program writes has none.
    """
    return _read(path, names, sealed=sealed)


def _read(
    path: Path, names: tuple[str, ...] | None, *, sealed: bool = True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    check_there(path)
    header, begin = read_header(path)
    metadata = header.pop(METADATA, {})
    if missing := set(names or ()) - header.keys():
        raise BadInput(f"{path} has no tensor {', '.join(sorted(missing))}: it is not the artifact expected here")
    if sealed:
        check_seal(path, metadata.get(SEAL), sealed_digest(path, header | {METADATA: metadata}, begin))
    try:
        with safe_open(path, framework="pt") as file:
            wanted = sorted(header) if names is None else names
            found = {name: file.get_tensor(name) for name in wanted}
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path} is not a readable safetensors file ({error}): delete it and run `dvc repro`") from error
    return found, {key: value for key, value in metadata.items() if key != SEAL}
