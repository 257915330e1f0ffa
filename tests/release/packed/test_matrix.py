"""A weight packed and unpacked: the same bits whatever they are; parts that do not fit together are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from restorelcc.release.packed.matrix import Packed, check, pack, row_bytes


def sparse_bits(outputs: int, inputs: int, kind: type = np.uint16, share: float = 0.5, seed: int = 0) -> np.ndarray:
    """Random bits, of which a share is zero."""
    generator = np.random.default_rng(seed)
    bits_OI = generator.integers(1, 2**15, (outputs, inputs)).astype(kind)
    bits_OI[generator.random((outputs, inputs)) < share] = 0
    return bits_OI


def packed_of(bits_OI: np.ndarray) -> Packed:
    """`pack`, also where it would not pay."""
    kept_OI = bits_OI != 0
    mask_OW = np.zeros((len(bits_OI), row_bytes(bits_OI.shape[1])), np.uint8)
    mask_OW[:, : -(-bits_OI.shape[1] // 8)] = np.packbits(kept_OI, axis=1, bitorder="little")
    offsets = np.concatenate([[0], np.cumsum(kept_OI.sum(axis=1))]).astype(np.int32)
    return Packed(bits_OI.shape[1], mask_OW, offsets, bits_OI[kept_OI])


@given(
    hnp.arrays(
        st.sampled_from([np.uint16, np.uint32]),
        st.tuples(st.integers(1, 9), st.integers(1, 200)),
        elements=st.integers(0, 2**16 - 1),
        fill=st.just(0),
    )
)
def test_all_bits_come_back(bits_OI: np.ndarray) -> None:
    packed = pack(bits_OI)
    if packed is None:
        assert np.count_nonzero(bits_OI) > 0.3 * bits_OI.size or bits_OI.shape[1] < 64
        packed = packed_of(bits_OI)
    check(packed, len(bits_OI))
    assert np.array_equal(packed.dense(), bits_OI)
    assert packed.dense().dtype == bits_OI.dtype


def test_the_bits_lie_where_the_format_says() -> None:
    bits_OI = np.zeros((2, 70), np.uint16)
    bits_OI[0, [1, 65]] = 5, 6
    bits_OI[1, 8] = 0x8000  # -0.0 is no zero
    packed = pack(bits_OI)
    assert packed is not None
    assert packed.mask.tolist() == [[2, *[0] * 7, 2, *[0] * 7], [0, 1, *[0] * 14]]
    assert packed.offsets.tolist() == [0, 2, 3]
    assert packed.values.tolist() == [5, 6, 0x8000]


@pytest.mark.parametrize(("share", "most"), [(0.5, 0.57), (0.6, 0.47)])
def test_it_is_as_small_as_promised(share: float, most: float) -> None:
    bits_OI = sparse_bits(64, 4096)
    order = np.argsort(np.random.default_rng(1).random(bits_OI.shape), axis=1)
    bits_OI[:] = 1
    np.put_along_axis(bits_OI, order[:, : int(share * 4096)], 0, axis=1)
    packed = pack(bits_OI)
    assert packed is not None
    assert sum(part.nbytes for part in packed.parts().values()) <= most * bits_OI.nbytes


def test_a_dense_weight_is_not_packed() -> None:
    assert pack(np.ones((8, 64), np.uint16)) is None


def _flipped(packed: Packed) -> np.ndarray:
    mask = packed.mask.copy()
    mask[3, 2] ^= 16
    return mask


def _moved(packed: Packed) -> np.ndarray:
    """One bit moved from one row to another: the sum of all stays."""
    mask = packed.mask.copy()
    mask[0, 0], mask[1, 0] = 0, 255
    return mask


def _beyond(packed: Packed) -> np.ndarray:
    """A bit moved behind the last column of its row."""
    mask = packed.mask.copy()
    row = mask[0]
    place = int(np.flatnonzero(row)[0])
    row[place] &= row[place] - 1
    row[-1] |= 128
    return mask


DAMAGE: dict[str, tuple[Any, str]] = {
    "mask flipped": (lambda p: {"mask": _flipped(p)}, "not as many bits in every row"),
    "mask moved": (lambda p: {"mask": _moved(p)}, "not as many bits in every row"),
    "mask beyond": (lambda p: {"mask": _beyond(p)}, "beyond the last of 100 columns"),
    "mask short": (lambda p: {"mask": p.mask[:, :-8]}, "its mask has the shape"),
    "offsets past the end": (lambda p: {"offsets": np.append(p.offsets[:-1], 10**6).astype(np.int32)}, "go from 0 to"),
    "offsets negative": (lambda p: {"offsets": p.offsets - np.int32(1)}, "go from -1 to"),
    "offsets fall": (lambda p: {"offsets": p.offsets[[0, 2, 1, *range(3, 8 + 1)]]}, "not as many bits"),
    "offsets short": (lambda p: {"offsets": p.offsets[:-1]}, "8 offsets for 8 rows"),
    "values short": (lambda p: {"values": p.values[:-1]}, "go from 0 to"),
    "a zero among values": (lambda p: {"values": np.append(p.values[:-1], 0).astype(np.uint16)}, "is zero"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_parts_that_do_not_fit_are_refused(name: str) -> None:
    damage, reason = DAMAGE[name]
    packed = pack(sparse_bits(8, 100, share=0.7))
    assert packed is not None
    check(packed, 8)
    with pytest.raises(ValueError, match=reason):
        check(replace(packed, **damage(packed)), 8)
