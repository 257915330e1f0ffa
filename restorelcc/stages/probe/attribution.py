"""What an edit of one head does to the answers: measured (`causal`), and to first order for all heads at once
(`gradient`).

Letters: N tuples, B batch, T tokens, V vocabulary, L layers, H heads, D head dim, X = H*D.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from restorelcc.base.progress import progress
from restorelcc.models.architectures import head_layout, out_projections
from restorelcc.models.hooks import added_to_inputs, logits_at
from restorelcc.models.packing import Row, alone, can_pack, model_inputs, packed, padded
from restorelcc.models.runtime import loss_scale
from restorelcc.models.text import EncodedContrast, EncodedPair, batches_by_length


@dataclass(frozen=True)
class MarginBatch:
    """Tuples as one input of the model, and where their answers' tokens are predicted: row, place, token, +1 or -1."""

    samples: list[int]
    inputs: dict[str, Any]
    row_K: Tensor
    place_K: Tensor
    token_K: Tensor
    sign_K: Tensor
    owner_R: list[int]  # which of `samples` each row of the input belongs to

    def margin_B(self, model: PreTrainedModel) -> Tensor:
        """log P(r+ | q) - log P(r- | q) of every tuple, float32 or better [B]."""
        chosen_BT = torch.zeros(self.inputs["input_ids"].shape, dtype=torch.bool, device=self.row_K.device)
        chosen_BT[self.row_K, self.place_K] = True
        # The last token of a question predicts the first of both answers.
        _, position_K = (self.row_K * chosen_BT.shape[1] + self.place_K).unique(return_inverse=True)
        logits_KV = logits_at(model, chosen_BT, **self.inputs)[position_K]
        logits_KV = logits_KV.to(torch.promote_types(logits_KV.dtype, torch.float32))
        loss_K = cross_entropy(logits_KV, self.token_K, reduction="none")
        owner_K = torch.tensor(self.owner_R, device=loss_K.device)[self.row_K]
        return loss_K.new_zeros(len(self.samples)).index_add(0, owner_K, -self.sign_K * loss_K)


def margin_batches(
    model: PreTrainedModel, tuples: Sequence[EncodedContrast], *, token_budget: int, pad: int
) -> list[MarginBatch]:
    """Batches of tuples of similar length; question, r+ and r- are one row where the model's attention allows it."""
    joint = can_pack(model)
    lengths = [len(each.positive.ids) + len(each.negative.ids) for each in tuples]
    batches = batches_by_length(lengths, token_budget)
    return [_margin_batch(model, tuples, samples, joint, pad) for samples in batches]


def _margin_batch(
    model: PreTrainedModel, tuples: Sequence[EncodedContrast], samples: list[int], joint: bool, pad: int
) -> MarginBatch:
    rows: list[Row] = []
    owner: list[int] = []
    targets: list[tuple[int, int, int, int]] = []
    for position, sample in enumerate(samples):
        positive, negative = tuples[sample].positive, tuples[sample].negative
        if joint:
            row = packed(positive.ids, negative.ids)
            targets += _targets(len(rows), positive, 1, lambda place: place)
            targets += _targets(len(rows), negative, -1, row.second)
            rows.append(row)
            owner.append(position)
        else:
            for pair, sign in ((positive, 1), (negative, -1)):
                targets += _targets(len(rows), pair, sign, lambda place: place)
                rows.append(alone(pair.ids))
                owner.append(position)
    row_K, place_K, token_K, sign_K = torch.tensor(targets, device=model.device).unbind(1)
    return MarginBatch(
        samples, model_inputs(model, padded([[row] for row in rows], pad)), row_K, place_K, token_K, sign_K, owner
    )


def _targets(row: int, pair: EncodedPair, sign: int, place_of: Any) -> list[tuple[int, int, int, int]]:
    """(row, place that predicts, token, sign) of every response token."""
    return [(row, place_of(place - 1), pair.ids[place], sign) for place in range(pair.question_tokens, len(pair.ids))]


def gradient_scores(model: PreTrainedModel, batches: Sequence[MarginBatch], edit_LNHD: Tensor) -> Tensor:
    """mean_n sum_t dz . d margin_n / d z_nt for every head, [L, H] float64: one backward pass for all heads.

    The first-order effect on the answer margin of adding dz to a head's output at every token t, which is what a
    compensation does. edit_LNHD [L, N or 1, H, D]: dz, of each tuple or one for all.
    """
    layout = head_layout(model)
    total_LH = torch.zeros(layout.layers, layout.heads, dtype=torch.float64)
    count, scale = sum(len(batch.samples) for batch in batches), loss_scale(model)
    for batch in progress(batches, "probe gradient", "batches"):
        rows = len(batch.owner_R)
        offsets = [
            torch.zeros(rows, 1, layout.width, device=p.weight.device, dtype=p.weight.dtype, requires_grad=True)
            for p in out_projections(model)
        ]
        edited = added_to_inputs(enumerate(out_projections(model)), offsets.__getitem__, expected=layout.layers)
        with edited, torch.enable_grad():
            times = scale / len(batch.token_K) if scale != 1.0 else 1.0  # of the mean over tokens, as in training
            (batch.margin_B(model).sum() * times).backward()
        owner = torch.tensor([batch.samples[position] for position in batch.owner_R])
        for layer, offset in enumerate(offsets):
            assert offset.grad is not None
            grad_RHD = layout.split(offset.grad[:, 0].cpu().double()) / times
            edit_NHD = edit_LNHD[layer].double()
            total_LH[layer] += (grad_RHD * (edit_NHD[owner] if len(edit_NHD) > 1 else edit_NHD)).sum(dim=(0, 2))
    return total_LH / count


@torch.no_grad()
def causal_scores(model: PreTrainedModel, batches: Sequence[MarginBatch], edit_LNHD: Tensor) -> Tensor:
    """mean_n [margin_n with dz added to this head at every token - margin_n without], [L, H] float64.

    One forward pass per head: L*H times the cost of `gradient`, and exact where that is first order.
    """
    layout = head_layout(model)
    total_LH = torch.zeros(layout.layers, layout.heads, dtype=torch.float64)
    count = sum(len(batch.samples) for batch in batches)
    bar = progress(None, "probe causal", "heads", total=layout.total * len(batches))
    projections = out_projections(model)
    for batch in batches:
        plain_B = batch.margin_B(model)
        owner = torch.tensor([batch.samples[position] for position in batch.owner_R])
        for layer, projection in enumerate(projections):
            edit_NHD = edit_LNHD[layer]
            edit_RHD = edit_NHD[owner] if len(edit_NHD) > 1 else edit_NHD.expand(len(owner), -1, -1)
            for head in range(layout.heads):
                alone_RHD = torch.zeros_like(edit_RHD)
                alone_RHD[:, head] = edit_RHD[:, head]
                with _with_edit(projection, layout.join(alone_RHD)[:, None]):
                    total_LH[layer, head] += (batch.margin_B(model) - plain_B).double().sum().cpu()
                bar.update()
    bar.close()
    return total_LH / count


def _with_edit(projection: nn.Linear, offset_B1X: Tensor) -> AbstractContextManager[None]:
    """The offset is added to the input of the out-projection at every token."""
    return added_to_inputs([(None, projection)], lambda _key: offset_B1X, expected=1)
