"""Two continuations of one text in one row: what they share is computed once, and neither sees the other.

Letters: B batch, T tokens of a row, L layers.

A row holds the first sequence and then what the second has beyond their common start. Attention is a tree: a token sees
those before it in its own sequence, and position ids and windows count along that sequence, so that every token's
activations are those of a pass over its sequence alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from restorelcc.core.architectures import family_of

PaddingSide = Literal["right", "left"]
_PADDING, _TRUNK, _FIRST, _SECOND = -1, 0, 1, 2  # which sequence a token of a row belongs to; the trunk is both's
_ADDITIVE = ("sdpa", "eager")  # attention implementations that take any mask, added to the scores


@dataclass(frozen=True)
class Row:
    """One or two sequences as one row; `trunk` tokens at its start belong to both."""

    ids: list[int]
    first: int  # tokens of the first sequence
    trunk: int

    @property
    def branches(self) -> bool:
        """Whether a second sequence goes on from the trunk."""
        return len(self.ids) > self.first

    @property
    def positions(self) -> list[int]:
        """Each token's place in its own sequence."""
        return [*range(self.first), *range(self.trunk, self.trunk + len(self.ids) - self.first)]

    def second(self, place: int) -> int:
        """Where in the row the second sequence's token at `place` stands."""
        return place if place < self.trunk else self.first + place - self.trunk


def alone(ids: list[int]) -> Row:
    """A row of one sequence."""
    return Row(ids, len(ids), len(ids))


def packed(first: list[int], second: list[int]) -> Row:
    """A row of two sequences that share their longest common start."""
    trunk = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        trunk += 1
    return Row(first + second[trunk:], len(first), trunk)


def can_pack(model: PreTrainedModel) -> bool:
    """Whether the model's attention takes a mask of any shape; flash attention does not."""
    return model.config._attn_implementation in _ADDITIVE


@dataclass(frozen=True)
class PaddedRows:
    """Rows as a batch. tokens_BT; start_B: where each row begins (0 unless padded on the left)."""

    tokens_BT: Tensor
    start_B: Tensor
    positions_BT: Tensor
    branch_BT: Tensor

    @property
    def causal_is_enough(self) -> bool:
        """True when no token would see padding or the other sequence under a plain causal mask."""
        return bool((self.start_B == 0).all()) and not bool((self.branch_BT == _SECOND).any())


def padded(rows: Sequence[Row], pad: int, side: PaddingSide = "right") -> PaddedRows:
    """Put rows into one batch, padded on either side."""
    width = max(len(row.ids) for row in rows)
    columns: tuple[list[list[int]], ...] = ([], [], [])
    for row in rows:
        filling = width - len(row.ids)
        branch = [_TRUNK] * row.trunk + [_FIRST] * (row.first - row.trunk) + [_SECOND] * (len(row.ids) - row.first)
        for column, values, neutral in zip(columns, (row.ids, row.positions, branch), (pad, 0, _PADDING), strict=True):
            column.append(values + [neutral] * filling if side == "right" else [neutral] * filling + values)
    start_B = torch.tensor([0 if side == "right" else width - len(row.ids) for row in rows])
    tokens_BT, positions_BT, branch_BT = (torch.tensor(column) for column in columns)
    return PaddedRows(tokens_BT, start_B, positions_BT, branch_BT)


def model_inputs(model: PreTrainedModel, rows: PaddedRows) -> dict[str, Any]:
    """Arguments of the model's forward for these rows. Raises ValueError when it cannot take the mask they need."""
    tokens_BT = rows.tokens_BT.to(model.device)
    if rows.causal_is_enough:
        return {"input_ids": tokens_BT, "use_cache": False}
    if not can_pack(model):
        raise ValueError(f"{model.config._attn_implementation} attention takes no mask: pad on the right, one sequence")
    seen_BTT = _seen(rows.branch_BT.to(model.device))
    positions_BT = rows.positions_BT.to(model.device)
    distance_BTT = positions_BT[:, :, None] - positions_BT[:, None, :]

    def additive(window: int | None) -> Tensor:
        allowed_BTT = seen_BTT if window is None else seen_BTT & (distance_BTT < window)
        hidden = torch.finfo(model.dtype).min
        return torch.zeros_like(allowed_BTT, dtype=model.dtype).masked_fill_(~allowed_BTT, hidden)[:, None]

    window = getattr(model.config, "sliding_window", None)
    windows = family_of(model).windows
    mask: Tensor | dict[str, Tensor]
    if windows == "listed":
        kinds = set(model.config.layer_types)
        if kinds - {"full_attention", "sliding_attention"}:
            raise ValueError(f"attention layers of the kinds {sorted(kinds)} are not all known")
        mask = {kind: additive(None if kind == "full_attention" else window) for kind in sorted(kinds)}
    else:
        mask = additive(window if windows == "every" else None)
    return {"input_ids": tokens_BT, "attention_mask": mask, "position_ids": positions_BT, "use_cache": False}


def _seen(branch_BT: Tensor) -> Tensor:
    """Which token (last axis) each token sees: earlier ones of its own sequence. Bool [B, T, T].

    Padding sees padding before it and itself, since a softmax over nothing is not a number.
    """
    tokens = branch_BT.shape[1]
    causal_TT = torch.ones(tokens, tokens, dtype=torch.bool, device=branch_BT.device).tril()
    same_BTT = branch_BT[:, :, None] == branch_BT[:, None, :]
    trunk_BTT = (branch_BT[:, None, :] == _TRUNK) & (branch_BT[:, :, None] != _PADDING)
    return causal_TT & (same_BTT | trunk_BTT)
