"""Small safetensors artifacts (components, compensation), byte-identical for identical content."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from restorelcc.base.errors import BadInput
from restorelcc.models.safetensors_header import decoded, encoded, read_raw


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors with string metadata; the same content gives the same bytes."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    _sort_header(path)


def _sort_header(path: Path) -> None:
    # safetensors writes metadata keys in an order that differs from run to run; tensor offsets count from the end of
    # the header, so the header can be written again in sorted order without touching the data.
    raw = read_raw(path)
    sorted_path = path.with_name(path.name + ".sorted")
    sorted_path.write_bytes(encoded(decoded(raw), sort_keys=True) + path.read_bytes()[len(raw) :])
    sorted_path.replace(path)


def read_all_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor and the metadata. Raises BadInput when the file is missing or damaged."""
    return _read(path, None)


def read_tensors(path: Path, names: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The named tensors and the metadata. Raises BadInput when the file or a tensor is missing or damaged."""
    return _read(path, names)


def _read(path: Path, names: tuple[str, ...] | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise BadInput(f"{path} is missing: run the stage that writes it (dvc repro)")
    try:
        with safe_open(path, framework="pt") as file:
            missing = set(names or ()) - set(file.keys())
            if missing:
                raise BadInput(
                    f"{path} has no tensor {', '.join(sorted(missing))}: it is not the artifact expected here"
                )
            wanted = sorted(file.keys()) if names is None else names
            return {name: file.get_tensor(name) for name in wanted}, file.metadata() or {}
    except SafetensorError as error:
        raise BadInput(f"{path} is not a readable safetensors file ({error}): delete it and run `dvc repro`") from error
