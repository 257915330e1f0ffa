"""The loss of question/response pairs, on response tokens only.

Letters: B batch, T tokens, R tokens with a label, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from restorelcc.models.hooks import logits_at
from restorelcc.models.packing import alone, can_pack, even_lines, model_inputs, padded
from restorelcc.models.runtime import positions_at_once
from restorelcc.models.text import EncodedPair, batches_by_length, right_padded

_PASS = 8  # a pass costs as much, beside its tokens, as this share of those that keep the device busy
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


@dataclass(frozen=True)
class Packed:
    """Pairs as one batch, several of them on a line. order: their numbers, as their labels follow one another."""

    tokens_BT: Tensor
    labels_BT: Tensor
    inputs: dict[str, Any]  # further arguments of the model's forward: mask and positions, where lines are shared
    order: list[int]


def packed_batch(model: PreTrainedModel, pairs: list[EncodedPair], pad: int) -> Packed:
    """`response_batch`, with pairs on lines of their own or shared ones (`lines_that_pay`)."""
    lines = lines_that_pay(model, [len(pair.ids) for pair in pairs])
    batch = padded([[alone(pairs[number].ids) for number in line] for line in lines], pad)
    inputs = model_inputs(model, batch)
    order = [number for line in lines for number in line]
    labels_BT = torch.full_like(batch.tokens_BT, IGNORED)
    for number, line, start in zip(order, batch.line_R.tolist(), batch.start_R.tolist(), strict=True):
        pair = pairs[number]
        begin, end = start + pair.question_tokens, start + len(pair.ids)
        labels_BT[line, begin:end] = torch.tensor(pair.ids[pair.question_tokens :])
    tokens_BT = inputs.pop("input_ids")
    return Packed(tokens_BT, labels_BT.to(model.device), inputs, order)


def lines_that_pay(model: PreTrainedModel, lengths: list[int]) -> list[list[int]]:
    """Which sequences, by their number, share a line.

    Each has a line of its own where all together are no more tokens than keep the device busy, whatever the padding,
    or where the model cannot keep sequences of one line apart.
    """
    if not _shares_lines(model) or len(lengths) * max(lengths) < enough_tokens(model):
        return [[number] for number in range(len(lengths))]
    config = model.config.get_text_config()
    return even_lines(lengths, int(config.hidden_size), positions_at_once(model.device, int(config.vocab_size)))


def parts_of_batch(model: PreTrainedModel, lengths: list[int], rows: list[int]) -> list[list[int]]:
    """The rows in parts that take the least time, each of as many tokens as may have logits at once, padding included,
    unless one row alone has more."""
    most = positions_at_once(model.device, int(model.config.get_text_config().vocab_size))
    if not _shares_lines(model):
        return similar_parts(lengths, rows, most=most, enough=enough_tokens(model))
    lines = lines_that_pay(model, [lengths[row] for row in rows])
    longest = max(sum(lengths[rows[number]] for number in line) for line in lines)
    if len(lines) * longest <= most:
        return [rows]
    together = max(1, most // longest)
    parts = [lines[start : start + together] for start in range(0, len(lines), together)]
    return [[rows[number] for line in part for number in line] for part in parts]


def _shares_lines(model: PreTrainedModel) -> bool:
    """On a CPU, where a model can: a GPU computes padding in time that a mask of any shape would take from it."""
    return model.device.type == "cpu" and can_pack(model)


def response_logits(
    model: PreTrainedModel, tokens_BT: Tensor, labels_BT: Tensor, **inputs: Any
) -> tuple[Tensor, Tensor]:
    """Logits [R, V] in float32 that predict the R labelled tokens, row by row, and those tokens [R].

    inputs: further arguments of the model's forward.
    """
    predicts_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
    predicts_BT[:, :-1] = labels_BT[:, 1:] != IGNORED
    logits_RV = logits_at(model, predicts_BT, input_ids=tokens_BT, **inputs)
    return logits_RV.float(), labels_BT[:, 1:][predicts_BT[:, :-1]].to(logits_RV.device)


def response_loss(model: PreTrainedModel, tokens_BT: Tensor, labels_BT: Tensor, **inputs: Any) -> Tensor:
    """Sum over the response tokens of -log P(token | what is before it), in float32."""
    return cross_entropy(*response_logits(model, tokens_BT, labels_BT, **inputs), reduction="sum")


def enough_tokens(model: PreTrainedModel) -> int:
    """`tokens_that_pay` of a model where it is."""
    return tokens_that_pay(model.device.type, int(model.config.get_text_config().hidden_size))


def tokens_that_pay(device: str, width: int) -> int:
    """Tokens of one pass that keep the device busy: fewer take as long. On a CPU a wide model needs fewer."""
    return max(128, 2**17 // width) if device == "cpu" else 4096


def similar_parts(lengths: list[int], rows: list[int], *, most: int, enough: int) -> list[list[int]]:
    """The rows in parts of similar length, longest first, that take the least time: that of their tokens, padding
    included, and of what each pass costs beside them, reckoned as an eighth of `enough` tokens.

    A part has at most `most` tokens with its padding, unless one row alone has more. Rows that have less than `enough`
    together stay as they are: their time is that of a pass, whatever the padding.
    """
    ordered = sorted(rows, key=lambda row: -lengths[row])
    together = len(rows) * lengths[ordered[0]]
    if together < enough and together <= most:
        return [rows]
    # The least cost of the first rows, with the fewest parts of those that have it, and where the last part begins.
    least: list[tuple[int, int, int]] = [(0, 0, 0)]
    for end in range(1, len(rows) + 1):
        tokens = {start: (end - start) * lengths[ordered[start]] for start in range(end)}
        allowed = (start for start in tokens if tokens[start] <= most or end - start == 1)
        costs = ((least[start][0] + tokens[start] + enough // _PASS, least[start][1] + 1, start) for start in allowed)
        least.append(min(costs))
    parts: list[list[int]] = []
    end = len(rows)
    while end:
        parts.insert(0, ordered[least[end][2] : end])
        end = least[end][2]
    return parts if len(parts) > 1 else [rows]


@torch.no_grad()
def pair_losses(model: PreTrainedModel, pairs: list[EncodedPair], pad: int, token_budget: int = 8192) -> Tensor:
    """The summed response loss of every pair, [N] float64."""
    losses_N = torch.zeros(len(pairs), dtype=torch.float64)
    token_budget = min(token_budget, positions_at_once(model.device, model.config.get_text_config().vocab_size))
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
