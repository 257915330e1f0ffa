"""Train a compensation on question/response pairs.

Letters: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from restorelcc.compensate.compensation import HeadCompensation, attached
from restorelcc.compensate.config import CompensateConfig
from restorelcc.core.architectures import head_layout
from restorelcc.core.errors import StageFailed
from restorelcc.core.progress import progress
from restorelcc.core.text import EncodedPair, batches_by_length, right_padded

IGNORED = -100  # label of tokens that carry no loss: questions and padding


@dataclass(frozen=True)
class Trained:
    """One run: its learning rate, the validation loss before and after, and the training loss of each epoch."""

    learning_rate: float
    initial_loss: float
    valid_loss: float
    train_losses: list[float]


def response_batch(pairs: list[EncodedPair], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids [B, T] and labels [B, T]: a label at every response token, IGNORED elsewhere."""
    tokens_BT = right_padded([pair.ids for pair in pairs], pad)
    labels_BT = torch.full_like(tokens_BT, IGNORED)
    for row, pair in enumerate(pairs):
        labels_BT[row, pair.question_tokens : len(pair.ids)] = torch.tensor(pair.ids[pair.question_tokens :])
    return tokens_BT.to(device), labels_BT.to(device)


def response_loss(model: PreTrainedModel, tokens_BT: Tensor, labels_BT: Tensor, reduction: str = "mean") -> Tensor:
    """-log P(response | question) over response tokens, in float32."""
    logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
    return cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1).float(), labels_BT[:, 1:].flatten(), ignore_index=IGNORED, reduction=reduction
    )


@torch.no_grad()
def mean_loss(model: PreTrainedModel, pairs: list[EncodedPair], pad: int, token_budget: int = 8192) -> float:
    """Mean response loss per token over all pairs."""
    total, tokens = 0.0, 0
    for batch in batches_by_length([len(pair.ids) for pair in pairs], token_budget):
        tokens_BT, labels_BT = response_batch([pairs[number] for number in batch], pad, model.device)
        total += response_loss(model, tokens_BT, labels_BT, reduction="sum").item()
        tokens += int((labels_BT != IGNORED).sum())
    return total / tokens


def train_compensation(
    model: PreTrainedModel,
    compensation: HeadCompensation,
    train: list[EncodedPair],
    valid: list[EncodedPair],
    config: CompensateConfig,
    *,
    learning_rate: float,
    pad: int,
    title: str,
) -> Trained:
    """AdamW with linear decay on beta and b; every tensor of `model` stays as it is.

    Raises StageFailed, naming the step, when the loss is no longer a finite number.
    """
    optimizer = torch.optim.AdamW(compensation.parameters(), lr=learning_rate, weight_decay=0.0)
    steps = config.epochs * math.ceil(len(train) / config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    generator = torch.Generator().manual_seed(config.seed)
    losses: list[float] = []
    with attached(model, compensation, head_layout(model)):
        initial = mean_loss(model, valid, pad)
        bar = progress(range(steps), title, "steps")
        for _ in range(config.epochs):
            order = torch.randperm(len(train), generator=generator).tolist()
            total = 0.0
            for start in range(0, len(order), config.batch_size):
                pairs = [train[number] for number in order[start : start + config.batch_size]]
                loss = response_loss(model, *response_batch(pairs, pad, model.device))
                if not torch.isfinite(loss):
                    raise StageFailed(
                        f"{title}: the loss is {loss.item()} at step {bar.n + 1} of {steps}: "
                        "lower compensate.learning_rates"
                    )
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(compensation.parameters(), config.max_gradient_norm)
                optimizer.step()
                schedule.step()
                total += loss.item() * len(pairs)
                bar.update()
            losses.append(total / len(order))
            bar.set_postfix_str(f"loss {losses[-1]:.3f}")
        bar.close()
        return Trained(learning_rate, initial, mean_loss(model, valid, pad), losses)
