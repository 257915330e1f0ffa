"""Logits at chosen positions only: a large vocabulary's projection costs more than a block, and its output more memory
than all else.

Letters: B batch, T tokens, R chosen positions, M model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from restorelcc.models.hooks import hooked

_LOGITS = {"cpu": 2**25, "cuda": 2**29}  # entries that stand in memory at once, several times over in training


def logits_at(model: PreTrainedModel, chosen_BT: Tensor, **inputs: Any) -> Tensor:
    """Logits [R, V] at the positions where chosen_BT is true, row by row, as the model itself computes them there.

    The projection reads the hidden states of these positions alone; what a family does to its logits after it, one by
    one, happens to them as well. `inputs` are the model's own.
    """
    called = []

    def keep(_module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_BTM, *others = arguments
        called.append(True)
        return hidden_BTM[chosen_BT.to(hidden_BTM.device)][None], *others

    with hooked([(None, model.get_output_embeddings())], lambda _key: keep, expected=1):
        logits = model(**{"use_cache": False} | inputs).logits
    return logits[0] if called else logits[chosen_BT.to(logits.device)]


def positions_at_once(device: torch.device, vocabulary: int) -> int:
    """Positions whose logits may stand in memory at once: 128 MiB of float32 on the CPU, 2 GiB on a GPU."""
    return max(1, _LOGITS["cuda" if device.type == "cuda" else "cpu"] // vocabulary)
