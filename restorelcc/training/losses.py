"""The loss of question/response pairs, on response tokens only.

Letters: B batch, T tokens, K positions with a label in some row, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from restorelcc.models.text import EncodedPair, batches_by_length, right_padded

IGNORED = -100  # label of tokens that carry no loss: questions and padding


def response_tokens(pair: EncodedPair) -> int:
    """Tokens of the pair that carry loss."""
    return len(pair.ids) - pair.question_tokens


def response_batch(pairs: list[EncodedPair], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids [B, T] and labels [B, T]: a label at every response token, IGNORED elsewhere."""
    tokens_BT = right_padded([pair.ids for pair in pairs], pad)
    labels_BT = torch.full_like(tokens_BT, IGNORED)
    for row, pair in enumerate(pairs):
        labels_BT[row, pair.question_tokens : len(pair.ids)] = torch.tensor(pair.ids[pair.question_tokens :])
    return tokens_BT.to(device), labels_BT.to(device)


def response_logits(model: PreTrainedModel, tokens_BT: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [R, V] in float32 that predict the R labelled tokens, row by row, and those tokens [R].

    The vocabulary's projection runs only at positions where some row has a label.
    """
    predicted_BT = labels_BT[:, 1:]
    kept_K = (predicted_BT != IGNORED).any(dim=0).nonzero().squeeze(1)
    logits_BKV = model(input_ids=tokens_BT, use_cache=False, logits_to_keep=kept_K).logits
    predicted_BK = predicted_BT[:, kept_K].to(logits_BKV.device)
    labelled_BK = predicted_BK != IGNORED
    return logits_BKV[labelled_BK].float(), predicted_BK[labelled_BK]


def response_loss(model: PreTrainedModel, tokens_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Sum over the response tokens of -log P(token | what is before it), in float32."""
    return cross_entropy(*response_logits(model, tokens_BT, labels_BT), reduction="sum")


@torch.no_grad()
def pair_losses(model: PreTrainedModel, pairs: list[EncodedPair], pad: int, token_budget: int = 8192) -> Tensor:
    """The summed response loss of every pair, [N] float64."""
    losses_N = torch.zeros(len(pairs), dtype=torch.float64)
    for batch in batches_by_length([len(pair.ids) for pair in pairs], token_budget):
        tokens_BT, labels_BT = response_batch([pairs[number] for number in batch], pad, model.device)
        token_losses_R = cross_entropy(*response_logits(model, tokens_BT, labels_BT), reduction="none")
        row_R = (labels_BT[:, 1:] != IGNORED).nonzero()[:, 0]
        sums_B = torch.zeros(len(batch), dtype=torch.float64)
        losses_N[torch.tensor(batch)] = sums_B.index_add(0, row_R.cpu(), token_losses_R.double().cpu())
    return losses_N


def mean_loss(model: PreTrainedModel, pairs: list[EncodedPair], pad: int) -> float:
    """Mean response loss per token over all pairs."""
    return float(pair_losses(model, pairs, pad).sum()) / sum(map(response_tokens, pairs))
