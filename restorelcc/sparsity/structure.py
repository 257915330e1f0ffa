"""Which rows and columns of a block belong to one removable part: a group of heads, or a channel of the FFN.

Letters: H query heads, D head dim, G removable head groups, O output features, I input features, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from restorelcc.models.architectures import check_whole_parts, family_of, head_layout, kv_heads


@dataclass(frozen=True)
class HeadGroups:
    """What goes together when heads are removed.

    With several key/value heads a part is one of them with all query heads that read it, so that every query head still
    finds its own. With a single one (multi-query) a part is one query head, and keys and values stay.
    """

    query_heads: int
    kv_heads: int
    head_dim: int
    fused: bool  # query, key and value are rows of one linear, head by head

    @property
    def count(self) -> int:
        """G, how many removable parts a layer has."""
        return self.kv_heads if self.kv_heads > 1 else self.query_heads

    @property
    def query_heads_each(self) -> int:
        return self.query_heads // self.count

    def out_columns(self) -> Tensor:
        """Columns of the out-projection per part, [G, H / G * D]."""
        return torch.arange(self.query_heads * self.head_dim).reshape(self.count, -1)

    def rows(self) -> list[Tensor | None]:
        """Rows per part of each linear in Family.qkv, [G, rows]; None where the linear stays whole."""
        if self.fused:
            return [torch.arange(3 * self.query_heads * self.head_dim).reshape(self.count, -1)]
        if self.kv_heads == 1:
            return [self.out_columns(), None, None]
        keys = torch.arange(self.kv_heads * self.head_dim).reshape(self.count, -1)
        return [self.out_columns(), keys, keys]


def head_groups(model: PreTrainedModel) -> HeadGroups:
    """The removable parts of every layer's attention. Raises BadInput for a family that has none."""
    check_whole_parts(model.config, "such pruning")
    heads = head_layout(model)
    return HeadGroups(heads.heads, kv_heads(model), heads.head_dim, fused=family_of(model).qkv_rows == "heads")


def removed_parts(out_weight_OI: Tensor, columns_GX: Tensor) -> Tensor:
    """True for parts whose columns of the out-projection are all zero, so that nothing of them is read. Bool [G]."""
    return (out_weight_OI == 0).all(dim=0)[columns_GX.to(out_weight_OI.device)].all(dim=1)
