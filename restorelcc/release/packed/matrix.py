"""One sparse weight as a bit mask, the survivors and the number of survivors before each row; numpy alone.

Letters: O output features (rows), I input features, W bytes of mask in a row = 8 * ceil(I / 64), N survivors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PARTS = ("mask", "offsets", "values")  # in the order in which they lie in a file
STORED = {"BF16": "U16", "F16": "U16", "F32": "U32"}  # dtype of a weight: dtype that its survivors are stored as
WORD = 64  # bits of mask that a row is filled up to
_MOST = 2**31 - 1  # survivors that int32 can count

Bits = NDArray[np.uint16] | NDArray[np.uint32]


@dataclass(frozen=True)
class Packed:
    """W_OI without its zeros. A zero is a weight with no bit set: -0.0, NaN and subnormals survive, bit for bit."""

    inputs: int  # I
    mask: NDArray[np.uint8]  # [O, W]; bit i % 8 of byte i / 8 says whether weight i of the row is stored
    offsets: NDArray[np.int32]  # [O + 1]
    values: Bits  # [N], the bits of the survivors, row by row

    def parts(self) -> dict[str, NDArray]:
        return {part: getattr(self, part) for part in PARTS}

    def dense(self) -> Bits:
        """The bits of W [O, I]."""
        found_OI = np.zeros((len(self.mask), self.inputs), self.values.dtype)
        found_OI[_bits(self.mask, self.inputs)] = self.values
        return found_OI


def row_bytes(inputs: int) -> int:
    """W: bytes of mask that a row of `inputs` weights takes."""
    return -(-inputs // WORD) * WORD // 8


def pack(bits_OI: Bits) -> Packed | None:
    """W as `Packed`, from the bits of its numbers; None where that is no smaller."""
    outputs, inputs = bits_OI.shape
    kept_OI = bits_OI != 0
    counts_O = kept_OI.sum(axis=1)
    survivors = int(counts_O.sum())
    size = outputs * row_bytes(inputs) + 4 * (outputs + 1) + survivors * bits_OI.itemsize
    if size >= bits_OI.nbytes or survivors > _MOST:
        return None
    mask_OW = np.zeros((outputs, row_bytes(inputs)), np.uint8)
    mask_OW[:, : -(-inputs // 8)] = np.packbits(kept_OI, axis=1, bitorder="little")
    return Packed(inputs, mask_OW, np.concatenate([[0], np.cumsum(counts_O)]).astype(np.int32), bits_OI[kept_OI])


def check(packed: Packed, outputs: int) -> None:
    """Raises ValueError, with the reason, unless the three parts fit together and to [outputs, I].

    After it nothing that is read by the mask or by the offsets lies outside of the values.
    """
    mask_OW, offsets, values = packed.mask, packed.offsets, packed.values
    if mask_OW.shape != (outputs, row_bytes(packed.inputs)):
        raise ValueError(f"its mask has the shape {mask_OW.shape}, not {(outputs, row_bytes(packed.inputs))}")
    if offsets.shape != (outputs + 1,) or values.ndim != 1:
        raise ValueError(f"it has {offsets.size} offsets for {outputs} rows")
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(values):
        raise ValueError(f"its offsets go from {offsets[0]} to {offsets[-1]}, and there are {len(values)} values")
    counts_O = np.bitwise_count(mask_OW).sum(axis=1, dtype=np.int64)
    if not np.array_equal(np.diff(offsets.astype(np.int64)), counts_O):
        raise ValueError("its mask has not as many bits in every row as its offsets say")
    spare = 8 * mask_OW.shape[1] - packed.inputs
    if spare and np.unpackbits(mask_OW, axis=1, bitorder="little")[:, -spare:].any():
        raise ValueError(f"its mask has bits beyond the last of {packed.inputs} columns")
    if not values.all():
        raise ValueError("one of its values is zero, which the mask would have said")


def _bits(mask_OW: NDArray[np.uint8], inputs: int) -> NDArray[np.bool_]:
    return np.unpackbits(mask_OW, axis=1, count=inputs, bitorder="little").view(np.bool_)
