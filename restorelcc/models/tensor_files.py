"""Single tensors of a safetensors checkpoint, read and overwritten one at a time.

safetensors' own reader maps a file into memory, and every page it touches counts as the process's memory until the file
is closed; here a tensor is read into memory of its own, and nothing else.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from restorelcc.base.errors import BadInput
from restorelcc.base.weights import weight_files

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SAFETENSORS_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: bytes start..end of a file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    def read(self) -> Tensor:
        """The tensor, in memory of its own. Raises BadInput when the file is cut short."""
        content = bytearray(self.end - self.start)
        with self.file.open("rb") as file:
            file.seek(self.start)
            if file.readinto(content) != len(content):
                raise BadInput(f"{self.file} is cut short: download or write it again")
        if not content:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.frombuffer(content, dtype=self.dtype).reshape(self.shape)

    def overwrite(self, tensor: Tensor) -> None:
        """Put another tensor of the same shape in this one's place; it is rounded to the dtype stored."""
        if tuple(tensor.shape) != self.shape:
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} has no place where {self.shape} lies")
        content = tensor.detach().to("cpu", self.dtype).contiguous().reshape(-1).view(torch.uint8).numpy()
        with self.file.open("r+b") as file:
            file.seek(self.start)
            file.write(content.data)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint by name; only headers are read. Raises BadInput for files of another kind."""
    return {name: tensor for path in weight_files(folder) for name, tensor in _header(path).items()}


def _header(path: Path) -> dict[str, StoredTensor]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            tensors[name] = StoredTensor(path, _DTYPES[entry["dtype"]], tuple(entry["shape"]), start, end)
            if end > size:
                raise ValueError(f"it is cut short: {name} should end at byte {end}, the file has {size}")
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise BadInput(
            f"{path} is not a readable safetensors file ({type(error).__name__}: {error}): download or write it again"
        ) from error
    return tensors
