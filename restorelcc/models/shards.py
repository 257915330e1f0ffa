"""Write a checkpoint's safetensors files one tensor at a time; no more than one tensor is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from restorelcc.base.documents import write_json
from restorelcc.base.weights import INDEX, WHOLE
from restorelcc.models.safetensors_header import METADATA, Header, encoded
from restorelcc.models.tensor_files import NAMES

DEFAULT_SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written: what it is, and how its content is made when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    content: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count * self.dtype.itemsize


def write_shards(
    folder: Path, tensors: Iterable[PlannedTensor], max_bytes: int = DEFAULT_SHARD_BYTES
) -> Iterator[tuple[PlannedTensor, Tensor]]:
    """Write model.safetensors, or numbered shards of at most max_bytes (one tensor at least) with their index.

    Yields every tensor with what was written for it, in order; the files are whole when the iterator ends.
    """
    shards = _split(list(tensors), max_bytes)
    count = len(shards)
    names = [WHOLE] if count == 1 else [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    for name, shard in zip(names, shards, strict=True):
        yield from _write_shard(folder / name, shard)
    if count > 1:
        placed = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.bytes for shard in shards for tensor in shard)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))})


def _split(tensors: list[PlannedTensor], max_bytes: int) -> list[list[PlannedTensor]]:
    shards: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.bytes > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.bytes
    return shards


def _write_shard(path: Path, tensors: list[PlannedTensor]) -> Iterator[tuple[PlannedTensor, Tensor]]:
    # Wider numbers first, as safetensors' own writer has it, so that every tensor is aligned.
    ordered = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
    with path.open("wb") as file:
        file.write(_header(ordered))
        for tensor in ordered:
            value = tensor.content()
            if value.dtype != tensor.dtype or tuple(value.shape) != tensor.shape:
                raise RuntimeError(f"{tensor.name} was planned as {tensor.shape} {tensor.dtype}, not {value.dtype}")
            file.write(raw_bytes(value))
            yield tensor, value


def _header(tensors: list[PlannedTensor]) -> bytes:
    header: Header = {METADATA: {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + tensor.bytes
        header[tensor.name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    return encoded(header)


def raw_bytes(tensor: Tensor) -> memoryview:
    """The tensor's numbers as they are stored in a file."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
