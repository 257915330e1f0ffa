"""Log-likelihoods of lm-eval's requests with what they share computed once: a question for all of its choices.

Requests that begin alike are one row whose sequences do not see one another (models/packing.py), and the
vocabulary is projected only where a continuation's token is predicted. Each result is that of a pass over the request
alone, up to rounding; where the model's attention cannot do it, or does not give that, lm-eval's own way is taken.

Letters: B batch, T tokens, R continuation tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from restorelcc.base.errors import BadInput, first_line
from restorelcc.base.progress import notice, progress
from restorelcc.models.hooks import logits_at
from restorelcc.models.packing import Tree, can_pack, lines_of, model_inputs, padded, trees_of
from restorelcc.models.runtime import positions_at_once
from restorelcc.models.text import batches_by_length

_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}  # of a token's log-likelihood

_ROWS = 64  # of logits whose softmax is in memory at once


class Scored(NamedTuple):
    """Of a request: the tokens before its last one, and how many at the end are predicted by them."""

    inputs: list[int]
    continuation: list[int]


Result = tuple[float, bool]  # log P(continuation | context), and whether each of its tokens is the most probable one


def scored(requests: Sequence[tuple[Any, list[int], list[int]]], longest: int) -> list[Scored]:
    """What the model reads of lm-eval's requests: too long ones lose tokens on the left, as there. Raises BadInput for
    a continuation that does not fit by itself, of which lm-eval asserts that there is none."""
    for _, _, continuation in requests:
        if len(continuation) > longest:
            raise BadInput(
                f"an item has an answer of {len(continuation)} tokens, and the model reads {longest} at most: leave "
                "the task out, or those items"
            )
    return [
        Scored((context + continuation)[-(longest + 1) :][:-1], continuation) for _, context, continuation in requests
    ]


def shared_log_likelihoods(
    model: PreTrainedModel, requests: Sequence[Scored], *, budget: int, pad: int, quiet: bool = False
) -> list[Result]:
    """Of every request, in their order. budget: tokens of one batch, padding included."""
    trees = trees_of([request.inputs for request in requests], budget)
    found: dict[int, Result] = {}
    lengths = [len(tree.ids) for tree, _ in trees]
    lines = lines_of(lengths)
    sizes = [sum(lengths[number] for number in line) for line in lines]
    bar = progress(None, "evaluate", "requests", total=len(requests), quiet=quiet)
    for batch in batches_by_length(sizes, budget):
        held = [[trees[number] for number in lines[line]] for line in batch]
        for some in _with_few_logits(held, requests, budget, model):
            found |= _run(model, some, requests, pad)
            bar.update(sum(len(members) for line in some for _, members in line))
    bar.close()
    return [found[number] for number in range(len(requests))]


Line = list[tuple[Tree, list[int]]]


def _with_few_logits(
    lines: list[Line], requests: Sequence[Scored], budget: int, model: PreTrainedModel
) -> Iterator[list[Line]]:
    """The lines in parts whose logits may stand in memory at once."""
    most = min(budget, positions_at_once(model.device, int(model.config.get_text_config().vocab_size)))
    part: list[Line] = []
    count = 0
    for line in lines:
        tokens = sum(len(requests[number].continuation) for _, members in line for number in members)
        if part and count + tokens > most:
            yield part
            part, count = [], 0
        part.append(line)
        count += tokens
    yield part


@torch.no_grad()
def _run(model: PreTrainedModel, lines: list[Line], requests: Sequence[Scored], pad: int) -> dict[int, Result]:
    batch = padded([[tree for tree, _ in line] for line in lines], pad)
    rows = [each for line in lines for each in line]
    targets: list[tuple[int, int, int, int]] = []  # request, line, place that predicts, token
    for (tree, members), line, start in zip(rows, batch.line_R.tolist(), batch.start_R.tolist(), strict=True):
        for sequence, number in enumerate(members):
            inputs, continuation = requests[number]
            first = len(inputs) - len(continuation)
            for offset, token in enumerate(continuation):
                targets.append((number, line, start + tree.place(sequence, first + offset), token))
    request_R, line_R, place_R, token_R = torch.tensor(targets).unbind(1)
    chosen_BT = torch.zeros(batch.tokens_BT.shape, dtype=torch.bool)
    chosen_BT[line_R, place_R] = True
    # Several continuations have their first token predicted by one place.
    _, position_R = (line_R * chosen_BT.shape[1] + place_R).unique(return_inverse=True)
    logits_UV = logits_at(model, chosen_BT, **model_inputs(model, batch)).float()
    best_U = logits_UV.argmax(dim=1).cpu()
    log_p_R = log_probabilities(logits_UV, position_R, token_R)
    return _summed(request_R, log_p_R, best_U[position_R] == token_R)


def log_probabilities(logits_UV: Tensor, position_R: Tensor, token_R: Tensor) -> Tensor:
    """log_softmax(logits)[position, token], [R] float32 on the CPU; positions sorted or not.

    Of all ways to compute it this is stock lm-eval's, in float32 (HFLM), whose rounding over a large vocabulary is
    larger than that of the logits: by another way a log-likelihood would differ by 1e-5 a token. A few rows at a time.
    """
    log_p_R = torch.empty(len(token_R))
    for start in range(0, len(logits_UV), _ROWS):
        part_UV = logits_UV[start : start + _ROWS].log_softmax(dim=1)
        own_R = (position_R >= start) & (position_R < start + _ROWS)
        places_R, tokens_R = (each[own_R].to(part_UV.device) for each in (position_R - start, token_R))
        log_p_R[own_R] = part_UV[places_R, tokens_R].cpu()
    return log_p_R


def _summed(request_R: Tensor, log_p_R: Tensor, right_R: Tensor) -> dict[int, Result]:
    numbers, owner_R = request_R.unique(return_inverse=True)
    sums = torch.zeros(len(numbers), dtype=torch.float64).index_add(0, owner_R, log_p_R.double())
    wrong = torch.zeros(len(numbers)).index_add(0, owner_R, (~right_R).float())
    return {int(n): (float(s), float(w) == 0) for n, s, w in zip(numbers, sums, wrong, strict=True)}


def why_not_shared(model: PreTrainedModel, requests: Sequence[Scored], pad: int, budget: int) -> str | None:
    """None when sharing gives this model's own log-likelihoods; otherwise the reason. Tried on the longest tree, behind
    the shortest one. budget: tokens of one batch."""
    if not can_pack(model):
        return f"{model.config._attn_implementation} attention accepts no custom mask"
    trees = sorted(trees_of([request.inputs for request in requests], budget), key=lambda each: len(each[0].ids))
    numbers = sorted({*trees[0][1], *trees[-1][1]})
    some = [requests[number] for number in numbers]
    try:
        together = shared_log_likelihoods(model, some, budget=budget, pad=pad, quiet=True)
    except torch.OutOfMemoryError:
        raise  # a smaller budget may do
    except (ValueError, TypeError, RuntimeError) as problem:
        return f"this model cannot run them as one row ({first_line(problem)})"
    for request, (value, _) in zip(some, together, strict=True):
        apart, _ = _run(model, [[(Tree(request.inputs, [[]]), [0])]], [request], pad)[0]
        if not abs(value - apart) <= _TOLERANCE.get(model.dtype, 1e-3) * len(request.continuation):
            return f"run as one row they differ by {abs(value - apart):.1e}"
    return None


def sharing(base: type, budget: int) -> type:
    """lm-eval's model class `base` whose requests share what they begin with."""

    class Sharing(base):
        def _loglikelihood_tokens(
            self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[Result]:
            if override_bs is not None:  # windows of running text, a batch at a time
                return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            asked, pad = scored(requests, self.max_length), self.tokenizer.pad_token_id or 0
            reason = why_not_shared(self.model, asked, pad, budget) if asked else None
            if reason is not None:
                notice("evaluate", f"requests run one by one: {reason}")
                return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            found = shared_log_likelihoods(self.model, asked, budget=budget, pad=pad, quiet=disable_tqdm)
            for (strings, *_), result in zip(requests, found, strict=True):
                if strings is not None:
                    self.cache_hook.add_partial("loglikelihood", strings, result)
            return found

    return Sharing
