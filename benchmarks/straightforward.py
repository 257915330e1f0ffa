"""Capture and training in the way that first comes to mind: what the project's own is measured against.

Capture: one sample at a time, a pass for the question and one for each response, every position of every layer kept.
Training: every pair padded to the longest of all, a term added to each chosen head by a hook of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from restorelcc.models.architectures import head_layout, out_projections
from restorelcc.models.text import EncodedContrast, EncodedPair


@torch.no_grad()
def capture(model: LlamaForCausalLM, tuples: list[EncodedContrast]) -> list[Tensor]:
    """z at the last token of question, question + positive and question + negative, [L, X] each."""
    kept: list[Tensor] = []

    def keep(_module: object, inputs: tuple[Tensor, ...]) -> None:
        kept.append(inputs[0].float().cpu())

    handles = [projection.register_forward_pre_hook(keep) for projection in out_projections(model)]
    found = []
    try:
        for each in tuples:
            for ids in (each.question, each.positive.ids, each.negative.ids):
                kept.clear()
                model(input_ids=torch.tensor([ids], device=model.device))
                found.append(torch.stack([z_BTX[0, -1] for z_BTX in kept]))
    finally:
        for handle in handles:
            handle.remove()
    return found


def train(
    model: LlamaForCausalLM,
    directions_PDD: Tensor,
    heads: list[tuple[int, int]],
    batches: list[list[EncodedPair]],
    rate: float,
) -> None:
    """AdamW on beta and b of the chosen heads."""
    layout, device = head_layout(model), model.device
    directions_PDD = directions_PDD.to(device)
    beta_PD = torch.zeros(directions_PDD.shape[:2], device=device, requires_grad=True)
    bias_PD = torch.zeros_like(beta_PD, requires_grad=True)
    projections = out_projections(model)

    def adding(number: int, head: int) -> object:
        def hook(_module: object, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            offset_D = beta_PD[number] @ directions_PDD[number] + bias_PD[number]
            z = inputs[0].clone()
            part = slice(head * layout.head_dim, (head + 1) * layout.head_dim)
            z[..., part] = z[..., part] + offset_D.to(z)
            return (z,)

        return hook

    handles = [projections[layer].register_forward_pre_hook(adding(n, h)) for n, (layer, h) in enumerate(heads)]
    optimizer = torch.optim.AdamW([beta_PD, bias_PD], lr=rate, weight_decay=0.0)
    longest = max(len(pair.ids) for batch in batches for pair in batch)
    try:
        for batch in batches:
            tokens_BT = torch.zeros(len(batch), longest, dtype=torch.long)
            labels_BT = torch.full((len(batch), longest), -100)
            for row, pair in enumerate(batch):
                tokens_BT[row, : len(pair.ids)] = torch.tensor(pair.ids)
                labels_BT[row, pair.question_tokens : len(pair.ids)] = torch.tensor(pair.ids[pair.question_tokens :])
            logits = model(input_ids=tokens_BT.to(device)).logits.float()
            loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten().to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
