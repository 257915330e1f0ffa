"""Capture head outputs z at chosen tokens.

Letters: N samples, B batch, T tokens, L layers, X = H*D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from restorelcc.core.architectures import head_layout
from restorelcc.core.hooks import observed_heads
from restorelcc.core.progress import progress
from restorelcc.core.text import batches_by_length, right_padded


@dataclass(frozen=True)
class Reading:
    """One sequence to run and the positions in it (the same number for all sequences) at which z is read."""

    ids: list[int]
    positions: tuple[int, ...]


@torch.no_grad()
def capture_heads(
    model: PreTrainedModel, readings: Sequence[Reading], *, token_budget: int, pad: int, title: str
) -> list[list[Tensor]]:
    """z at each reading's positions: result[k][layer] is [N, X] float32 on the CPU, for the k-th position.

    Attention is causal and padding stands on the right, so what is read does not depend on the other sequences of a
    batch, and one pass over question + response gives the same question activation as a pass over the question alone.
    """
    layout = head_layout(model)
    slots = len(readings[0].positions)
    z = [[torch.empty(len(readings), layout.width) for _ in range(layout.layers)] for _ in range(slots)]
    for batch in progress(batches_by_length([len(r.ids) for r in readings], token_budget), title, "batches"):
        rows = torch.arange(len(batch))
        positions = torch.tensor([readings[number].positions for number in batch])

        def observe(
            layer: int, z_BTX: Tensor, batch: list[int] = batch, rows: Tensor = rows, at: Tensor = positions
        ) -> None:
            for slot in range(slots):
                z[slot][layer][batch] = z_BTX[rows, at[:, slot]].float().cpu()

        with observed_heads(model, observe):
            tokens_BT = right_padded([readings[number].ids for number in batch], pad).to(model.device)
            model.base_model(input_ids=tokens_BT, use_cache=False)
    return z
