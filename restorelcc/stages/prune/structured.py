"""Structured pruning of one block: chooses the heads and channels to remove, and updates the linears.

Letters: O output features, I input features, G removable parts, X columns of one part.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.base.errors import StageFailed
from restorelcc.base.prunings import Pruning
from restorelcc.models.architectures import blocks_of, family_of
from restorelcc.sparsity.structure import head_groups
from restorelcc.stages.prune import PruneConfig
from restorelcc.stages.prune.inputs import InputStatistics
from restorelcc.stages.prune.slimgpt import choose_parts, compensated, layer_ratios, parts_to_remove
from restorelcc.stages.prune.sparsegpt import damped


class StructuredPruner:
    """SlimGPT: heads by the out-projection's Hessian, FFN channels by that of the FFN's last linear.

    What is removed is set to zero - columns of these two, rows of the linears that feed them - and the surviving
    columns make up for it. Biases stay: nothing reads what a removed row puts out.
    """

    def __init__(self, model: PreTrainedModel, pruning: Pruning, config: PruneConfig) -> None:
        self._family, self._groups = family_of(model), head_groups(model)
        self._pruning, self._config = pruning, config
        self._ratios = layer_ratios(pruning.sparsity.fraction, len(blocks_of(model)), config.slimgpt_first_layer)

    def gram_of(self, linears: dict[str, nn.Linear]) -> list[str]:
        ends = (self._family.out_proj, self._family.ffn_out)
        return [name for name in linears if name.endswith(tuple(f".{end}" for end in ends))]

    def moves_constant(self, linear: nn.Linear) -> bool:
        """No: what is removed as a whole is made up for by the columns that stay."""
        return False

    def prune(
        self, layer: int, linears: dict[str, nn.Linear], inputs: InputStatistics
    ) -> Iterator[tuple[str, Tensor, int]]:
        """(name, pruned weight, zeros wanted) of every linear of a block."""
        family, prefix = self._family, f"{self._family.stored}.{layer}."
        out_columns_GX, qkv_rows = self._groups.out_columns(), self._groups.rows()
        channels_G1 = torch.arange(linears[prefix + family.ffn_out].in_features)[:, None]
        heads, channels = self._counts(layer, linears, prefix)
        yield from self._remove(prefix, family.out_proj, out_columns_GX, heads, family.qkv, qkv_rows, linears, inputs)
        ffn_rows: list[Tensor | None] = [channels_G1] * len(family.ffn_in)
        yield from self._remove(prefix, family.ffn_out, channels_G1, channels, family.ffn_in, ffn_rows, linears, inputs)

    def _counts(self, layer: int, linears: dict[str, nn.Linear], prefix: str) -> tuple[int, int]:
        """Head groups and channels to remove. Raises StageFailed when the layer cannot lose the share asked for."""
        family, groups = self._family, self._groups
        group_cost = linears[prefix + family.out_proj].weight.numel() // groups.count
        for path, rows_GX in zip(family.qkv, groups.rows(), strict=True):
            group_cost += 0 if rows_GX is None else linears[prefix + path].weight.numel() // groups.count
        width = linears[prefix + family.ffn_out].in_features
        ffn = sum(linears[prefix + path].weight.numel() for path in (*family.ffn_in, family.ffn_out))
        total, channel_cost = sum(linear.weight.numel() for linear in linears.values()), ffn // width
        heads, channels = parts_to_remove(self._ratios[layer], total, groups.count, group_cost, width, channel_cost)
        given, asked = heads * group_cost + channels * channel_cost, self._ratios[layer] * total
        if abs(given - asked) > channel_cost:
            raise StageFailed(
                f"layer {layer} can lose {given / total:.0%} of its weights in whole heads and channels, "
                f"{self._pruning.name} asks for {asked / total:.0%}: prune less"
            )
        return heads, channels

    def _remove(
        self,
        prefix: str,
        reader: str,
        columns_GX: Tensor,
        count: int,
        writers: tuple[str, ...],
        rows_of_writers: list[Tensor | None],
        linears: dict[str, nn.Linear],
        inputs: InputStatistics,
    ) -> Iterator[tuple[str, Tensor, int]]:
        """Remove `count` parts: their columns of the reader, with compensation, and their rows of the writers."""
        weight_OI = linears[prefix + reader].weight
        columns_GX = columns_GX.to(weight_OI.device)
        gram_II = inputs.gram_II(prefix + reader)
        hessian_II = damped(gram_II, self._config.damping)
        # An input that is always zero costs nothing, whatever stands on its place of the damped diagonal.
        removed_G = choose_parts(weight_OI.masked_fill(gram_II.diagonal() == 0, 0), hessian_II, columns_GX, count)
        for path, rows_GX in zip(writers, rows_of_writers, strict=True):
            written_OI = linears[prefix + path].weight
            rows = () if rows_GX is None else rows_GX.to(weight_OI.device)[removed_G].flatten()
            pruned_OI = written_OI.clone()
            if rows_GX is not None:
                pruned_OI[rows] = 0
            yield prefix + path, pruned_OI, len(rows) * written_OI.shape[1]
        removed_I = torch.zeros(weight_OI.shape[1], dtype=torch.bool, device=weight_OI.device)
        removed_I[columns_GX[removed_G].flatten()] = True
        wanted = int(removed_I.sum()) * weight_OI.shape[0]
        yield prefix + reader, compensated(weight_OI, hessian_II, removed_I), wanted
        inputs.forget(prefix + reader)
