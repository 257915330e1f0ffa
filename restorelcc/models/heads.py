"""Head arithmetic; the only place where heads are counted, numbered, split and joined.

Letters: L layers, H query heads, D head dim, X = H*D (input width of the out-projection), P chosen heads,
K kept components.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from restorelcc.base.errors import BadInput

if TYPE_CHECKING:  # counting heads takes no torch
    from torch import Tensor


@dataclass(frozen=True)
class HeadLayout:
    """L layers of H query heads, D numbers each. D is measured (X / H), never hidden size / heads.

    blocks: where only some of a model's blocks have heads (hybrids), the numbers of those that have, in order; only
    these are counted as layers. None where layer and block are the same.
    """

    layers: int
    heads: int
    head_dim: int
    blocks: tuple[int, ...] | None = None

    @property
    def width(self) -> int:
        """X = H * D."""
        return self.heads * self.head_dim

    @property
    def total(self) -> int:
        """L * H."""
        return self.layers * self.heads

    def block(self, layer: int) -> int:
        """The number of the block that a layer is, as checkpoints count blocks."""
        return layer if self.blocks is None else self.blocks[layer]

    def layer(self, block: int) -> int | None:
        """Which layer a block is; None for a block without heads."""
        if self.blocks is None:
            return block
        return self.blocks.index(block) if block in self.blocks else None

    def flat(self, layer: int, head: int) -> int:
        """Flat number of (layer, head): layer * H + head."""
        return layer * self.heads + head

    def pair(self, flat: int) -> tuple[int, int]:
        """(layer, head) of a flat number."""
        return divmod(flat, self.heads)

    def split(self, joined: Tensor) -> Tensor:
        """[..., X] to [..., H, D]."""
        return joined.unflatten(-1, (self.heads, self.head_dim))

    def join(self, split: Tensor) -> Tensor:
        """[..., H, D] to [..., X]."""
        return split.flatten(-2)


def rounded_count(ratio: float, layout: HeadLayout) -> int:
    """P = ratio * L * H, rounded half up; it may be 0."""
    return math.floor(ratio * layout.total + 0.5)


def chosen_count(ratio: float, layout: HeadLayout, key: str = "the share") -> int:
    """P, as `rounded_count`. Raises BadInput, naming `key`, for what is no share, and when no head would be chosen."""
    if not isinstance(ratio, int | float) or not 0 < ratio <= 1:
        raise BadInput(f"the share of the heads is {ratio!r}: give a number above 0 and at most 1, for example 0.25")
    count = rounded_count(ratio, layout)
    if count < 1:
        raise BadInput(
            f"{key} {ratio:g} of {layout.total} heads rounds to none: "
            f"give at least {math.ceil(500 / layout.total) / 1000:g}"
        )
    return count


def check_heads(heads: Sequence[tuple[int, int]], layout: HeadLayout) -> None:
    """Raises BadInput without any head, for one that the model does not have, and for one that is given twice.

    heads: (layer, head) pairs.
    """
    if len(heads) == 0:
        raise BadInput("heads is empty: give (layer, head) pairs, for example ranking.best(0.25)")
    for layer, head in heads:
        if not (0 <= layer < layout.layers and 0 <= head < layout.heads):
            raise BadInput(
                f"heads has {(int(layer), int(head))}, and the model has layers 0 to {layout.layers - 1} and heads 0 "
                f"to {layout.heads - 1}: give (layer, head) pairs, for example ranking.best(0.25)"
            )
    given = [(int(layer), int(head)) for layer, head in heads]
    if twice := next((head for number, head in enumerate(given) if head in given[:number]), None):
        raise BadInput(f"heads has {twice} twice: give each head once, for example sorted(set(heads))")


def main_component(directions_HDD: Tensor, loadings_HD: Tensor, count: int) -> Tensor:
    """c = sum_{i<=K} alpha_i v_i. RestoreLCC eq. 4. Returns [..., H, D]; with K = D it is the mean row of dZ."""
    import torch

    return torch.einsum("...hk,...hkd->...hd", loadings_HD[..., :count], directions_HDD[..., :count, :])
