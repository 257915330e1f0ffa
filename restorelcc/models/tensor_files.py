"""Single tensors of a safetensors checkpoint, read and overwritten one at a time.

safetensors' own reader maps a file into memory, and every page it touches counts as the process's memory until the file
is closed; here a tensor is read into memory of its own, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from restorelcc.models.tensor_bytes import TORCH_NAMES, bytes_of, tensor_bytes

# What torch calls the dtypes of a header.
DTYPES = {code: getattr(torch, name) for code, name in TORCH_NAMES.items()}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor is stored: bytes start..end of a file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int
    turned: bool = False  # whether rows and columns change places as it is read and overwritten

    def as_linear(self, transposed: bool) -> StoredTensor:
        """The weight of a linear as [O, I], where its class stores it so (transposed: as [I, O])."""
        return replace(self, shape=self.shape[::-1], turned=True) if transposed else self

    def read(self) -> Tensor:
        """The tensor, in memory of its own. Raises BadInput when the file is cut short."""
        content = bytes_of(self.file, self.start, self.end)
        if not content:
            return torch.empty(self.shape, dtype=self.dtype)
        flat = torch.frombuffer(content, dtype=self.dtype)
        return flat.reshape(self.shape[::-1]).T if self.turned else flat.reshape(self.shape)

    def overwrite(self, tensor: Tensor) -> None:
        """Put another tensor of the same shape in this one's place; it is rounded to the dtype stored."""
        if tuple(tensor.shape) != self.shape:
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} has no place where {self.shape} lies")
        tensor = tensor.T if self.turned else tensor
        content = tensor.detach().to("cpu", self.dtype).contiguous().reshape(-1).view(torch.uint8).numpy()
        with self.file.open("r+b") as file:
            file.seek(self.start)
            file.write(content.data)


def floating_dtypes(stored: Mapping[str, StoredTensor]) -> set[torch.dtype]:
    """Those that the numbers of a checkpoint are stored in."""
    return {tensor.dtype for tensor in stored.values() if tensor.dtype.is_floating_point}


def least_dtype(value: Tensor, dtypes: set[torch.dtype]) -> torch.dtype | None:
    """The smallest of the dtypes that holds every number of a tensor as it is; None where none does."""
    ordered = sorted(dtypes, key=lambda each: (each.itemsize, str(each)))
    return next((dtype for dtype in ordered if torch.equal(value.to(dtype).to(value.dtype), value)), None)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint by name; only headers are read. Raises BadInput for files of another kind, and for
    a tensor that two files hold.
    """
    return {
        name: StoredTensor(found.file, DTYPES[found.code], found.shape, found.start, found.end)
        for name, found in tensor_bytes(folder).items()
    }
