"""Learning from the dense model's probabilities, computed once and kept as the most probable tokens.

Letters: R response tokens, K kept tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax
from transformers import PreTrainedModel

from restorelcc.base.progress import progress
from restorelcc.models.runtime import positions_at_once
from restorelcc.models.text import EncodedPair, batches_by_length
from restorelcc.training.compensation import Pairs, pairs_task
from restorelcc.training.loop import Task
from restorelcc.training.losses import packed_batch, response_batch, response_logits, response_tokens

_LEAST = 1e-9  # of a probability, so that its logarithm is finite


@dataclass(frozen=True)
class Targets:
    """For each response token of one pair the K most probable tokens [R, K] and their probabilities, float32."""

    tokens_RK: Tensor
    probabilities_RK: Tensor


@torch.no_grad()
def dense_targets(
    dense: PreTrainedModel, pairs: list[EncodedPair], pad: int, top_k: int, token_budget: int = 8192
) -> list[Targets]:
    """The dense model's targets at the response tokens of every pair."""
    found: list[Targets | None] = [None] * len(pairs)
    token_budget = min(token_budget, positions_at_once(dense.device, dense.config.get_text_config().vocab_size))
    for batch in progress(batches_by_length([len(pair.ids) for pair in pairs], token_budget), "distill", "batches"):
        logits_RV, _ = response_logits(dense, *response_batch([pairs[row] for row in batch], pad, dense.device))
        top = logits_RV.softmax(dim=-1).topk(min(top_k, logits_RV.shape[1]), dim=-1)
        sizes = [response_tokens(pairs[row]) for row in batch]
        parts = zip(batch, top.indices.cpu().split(sizes), top.values.cpu().split(sizes), strict=True)
        for row, tokens_RK, probabilities_RK in parts:
            found[row] = Targets(tokens_RK.to(torch.int32), probabilities_RK.clone())
    return [targets for targets in found if targets is not None]


def divergence(logits_RV: Tensor, tokens_RK: Tensor, probabilities_RK: Tensor) -> Tensor:
    """Sum over R of KL(dense || model), over the K kept tokens and one class for all others; least is 0."""
    log_q_RK = log_softmax(logits_RV, dim=-1).gather(1, tokens_RK.long())
    kept = (probabilities_RK * (probabilities_RK.clamp_min(_LEAST).log() - log_q_RK)).sum()
    rest_p_R = (1 - probabilities_RK.sum(dim=1)).clamp_min(0.0)
    rest_q_R = (1 - log_q_RK.exp().sum(dim=1)).clamp_min(_LEAST)
    return kept + (rest_p_R * (rest_p_R.clamp_min(_LEAST).log() - rest_q_R.log())).sum()


def distilled_loss(
    model: PreTrainedModel, pairs: list[EncodedPair], targets: list[Targets], pad: int, weight: float
) -> Tensor:
    """(1 - weight) * response loss + weight * divergence, summed over the response tokens of the pairs."""
    batch = packed_batch(model, pairs, pad)
    logits_RV, labels_R = response_logits(model, batch.tokens_BT, batch.labels_BT, **batch.inputs)
    tokens_RK = torch.cat([targets[number].tokens_RK for number in batch.order]).to(logits_RV.device)
    probabilities_RK = torch.cat([targets[number].probabilities_RK for number in batch.order]).to(logits_RV.device)
    learned = divergence(logits_RV, tokens_RK, probabilities_RK)
    return (1 - weight) * cross_entropy(logits_RV, labels_R, reduction="sum") + weight * learned


@torch.no_grad()
def mean_divergence(
    model: PreTrainedModel, pairs: list[EncodedPair], targets: list[Targets], pad: int, token_budget: int = 8192
) -> float:
    """Mean divergence from the dense model per response token, over all pairs."""
    found = 0.0
    token_budget = min(token_budget, positions_at_once(model.device, model.config.get_text_config().vocab_size))
    for batch in batches_by_length([len(pair.ids) for pair in pairs], token_budget):
        found += float(distilled_loss(model, [pairs[row] for row in batch], [targets[row] for row in batch], pad, 1.0))
    return found / sum(map(response_tokens, pairs))


def distilled_task(
    model: PreTrainedModel, pairs: Pairs, targets: list[Targets], weight: float, valid: list[Targets] | None = None
) -> Task:
    """`distilled_loss` of the training pairs. The validation loss is that of the responses, or with `valid`, the dense
    model's targets at the validation pairs, the mean divergence from it."""
    plain = pairs_task(model, pairs)

    def summed_loss(rows: list[int]) -> Tensor:
        batch = [pairs.train[row] for row in rows]
        return distilled_loss(model, batch, [targets[row] for row in rows], pairs.pad, weight)

    def validate() -> float:
        return plain.validate() if valid is None else mean_divergence(model, pairs.valid, valid, pairs.pad)

    return Task(summed_loss, plain.tokens, validate, plain.loss_scale, plain.parts)
