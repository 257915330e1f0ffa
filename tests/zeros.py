"""What a pruned weight or model holds, for tests to count.

Letters: O output features, I input features.
"""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from restorelcc.models.architectures import out_projections
from restorelcc.sparsity.patterns import densest_group
from restorelcc.sparsity.structure import head_groups, removed_parts


def zeros_per_row(weight_OI: Tensor) -> Tensor:
    """Exact zeros in each row, [O]."""
    return (weight_OI == 0).sum(dim=1)


def holds_pattern(weight_OI: Tensor, keep: int, group: int) -> bool:
    """Whether every group of `group` neighbours in a row has at most `keep` non-zeros."""
    densest = densest_group(weight_OI, group)
    return densest is not None and densest <= keep


def heads_removed_per_layer(model: PreTrainedModel) -> list[int]:
    """Query heads that nothing reads, layer by layer."""
    groups = head_groups(model)
    columns_GX = groups.out_columns()
    return [
        int(removed_parts(projection.weight, columns_GX).sum()) * groups.query_heads_each
        for projection in out_projections(model)
    ]
