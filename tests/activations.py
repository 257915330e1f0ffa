"""Captured head outputs of one layer, written from memory.

Letters: N samples, R roles, X = heads * head dim.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from restorelcc.activations.store import rows_at_once, stream_layer
from restorelcc.models.heads import HeadLayout


def write_layer(
    folder: Path,
    layer: int,
    sample_ids: list[int],
    roles_NX: dict[str, Tensor],
    layout: HeadLayout,
    digests: dict[str, str],
) -> None:
    """`stream_layer` of what is in memory."""
    values_NRX = torch.stack([values.float().cpu() for values in roles_NX.values()], dim=1).numpy()
    step = rows_at_once(len(roles_NX), layout)
    blocks = (values_NRX[start : start + step] for start in range(0, len(values_NRX), step))
    stream_layer(folder, layer, sample_ids, list(roles_NX), blocks, layout, digests)
