"""Where a checkpoint's tensors lie in its files, and which of their numbers are zero; NumPy suffices for that.

Letters: O output features, I input features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from restorelcc.base.errors import BadInput
from restorelcc.base.weights import weight_files
from restorelcc.models.safetensors_header import ITEM_BYTES, read_header, tensors_of

# What torch calls the dtypes of a header.
TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
FLOATING = frozenset(code for code in TORCH_NAMES if code.startswith(("F", "BF")))
_GROUP_WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64}  # an integer as long as a group of booleans


def bytes_of(path: Path, start: int, end: int) -> bytearray:
    """Bytes start..end of a file, in memory of their own. Raises BadInput when the file is cut short."""
    content = bytearray(end - start)
    with path.open("rb") as file:
        file.seek(start)
        if file.readinto(content) != len(content):
            raise BadInput(f"{path} is cut short: download or write it again")
    return content


@dataclass(frozen=True)
class TensorBytes:
    """Where one tensor is stored: bytes start..end of a file; `code` is its dtype in the words of the header."""

    file: Path
    code: str
    shape: tuple[int, ...]
    start: int
    end: int
    turned: bool = False  # whether rows and columns change places as it is read

    @property
    def dtype(self) -> str:
        """The dtype in torch's words."""
        return TORCH_NAMES[self.code]

    @property
    def numbers(self) -> int:
        return (self.end - self.start) // ITEM_BYTES[self.code]

    def as_linear(self, transposed: bool) -> TensorBytes:
        """The weight of a linear as [O, I], where its class stores it so (transposed: as [I, O])."""
        return replace(self, shape=self.shape[::-1], turned=True) if transposed else self

    def content(self) -> bytearray:
        """Its bytes, in memory of their own. Raises BadInput when the file is cut short."""
        return bytes_of(self.file, self.start, self.end)

    def nonzero(self) -> NDArray[np.bool_]:
        """x != 0 of every number, in the tensor's shape; -0 is a zero, NaN is none. Raises BadInput as `content`."""
        flat = _nonzero(self.content(), self.code)
        return flat.reshape(self.shape[::-1]).T if self.turned else flat.reshape(self.shape)


def _nonzero(content: bytearray, code: str) -> NDArray[np.bool_]:
    if code == "C64":
        parts = _nonzero(content, "F32")
        return parts[::2] | parts[1::2]
    if code == "F8_E8M0":  # powers of two alone, so that no bits mean zero
        return np.ones(len(content), dtype=bool)
    bits = np.frombuffer(content, dtype=f"<u{ITEM_BYTES[code]}")
    if code in FLOATING:
        bits = bits << 1  # without the sign
    found: NDArray[np.bool_] = bits != 0
    return found


def densest_group(nonzero_OI: NDArray[np.bool_], group: int) -> int | None:
    """The most non-zeros in any group of `group` neighbours in a row; None when the groups do not fill a row."""
    if nonzero_OI.shape[1] % group or not nonzero_OI.size:
        return None
    nonzero = np.ascontiguousarray(nonzero_OI).reshape(-1)
    if group in _GROUP_WORDS:
        return int(np.bitwise_count(nonzero.view(_GROUP_WORDS[group])).max())
    return int(np.count_nonzero(nonzero.reshape(-1, group), axis=1).max())


def tensor_bytes(folder: Path) -> dict[str, TensorBytes]:
    """Every tensor of a checkpoint by name; only headers are read. Raises BadInput for files of another kind, and for
    a tensor that two files hold.
    """
    found: dict[str, TensorBytes] = {}
    for path in weight_files(folder):
        for name, tensor in _tensors_in(path).items():
            if name in found:
                raise BadInput(
                    f"{found[name].file} and {path} both hold {name}: download or write the checkpoint again"
                )
            found[name] = tensor
    return found


def _tensors_in(path: Path) -> dict[str, TensorBytes]:
    header, begin = read_header(path)
    tensors = {}
    for name, entry in tensors_of(header).items():
        start, end = (begin + offset for offset in entry["data_offsets"])
        tensors[name] = TensorBytes(path, entry["dtype"], tuple(entry["shape"]), start, end)
    return tensors
