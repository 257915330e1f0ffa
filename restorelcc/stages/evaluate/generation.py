"""Does the model still write? Continuations of held-out texts, and how far its predictions are from the dense model's.

Multiple choice can look fine although generation has collapsed. Letters: B batch, T tokens, V vocabulary, P prompts,
Q prompt tokens, K tokens kept of the dense model's distribution.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from restorelcc.base.errors import BadInput
from restorelcc.models.continuation import end_tokens, generated, until_end
from restorelcc.models.text import batches_by_length, encode_documents, right_padded
from restorelcc.stages.evaluate import GenerationConfig
from restorelcc.stages.evaluate.batches import token_budget, within_memory

TOP_TOKENS = 256  # K: of a larger vocabulary the rest is one bucket, and the divergence a lower bound
_LONGEST = 512  # tokens of one held-out text
_GRAM = 4
_ONE_TOKEN = 0.8  # share of one token above which a continuation is that token repeated


@dataclass(frozen=True)
class Prompts:
    """Fixed beginnings, all of Q tokens, and held-out texts, as token ids."""

    beginnings_PQ: Tensor
    heldout: list[list[int]]


def fixed_prompts(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], config: GenerationConfig, context: int
) -> Prompts:
    """Beginnings and held-out texts spread evenly over `texts`; the same texts give the same prompts."""
    step = max(1, len(texts) // max(4 * config.prompts, 256))
    encoded = encode_documents(tokenizer, texts[::step], min(_LONGEST, context))
    if not encoded:
        raise BadInput("the held-out texts hold no sequence of two tokens: the generation check needs longer texts")
    lengths = sorted(map(len, encoded), reverse=True)
    enough = lengths[min(config.prompts, len(lengths)) - 1]
    tokens = max(1, min(config.prompt_tokens, enough // 2, context // 2))
    long = [ids for ids in encoded if len(ids) >= enough]
    spread = long[:: max(1, len(long) // config.prompts)][: config.prompts]
    heldout, total = [], 0
    for ids in encoded:
        if total >= config.heldout_tokens:
            break
        heldout.append(ids[: max(2, config.heldout_tokens - total)])
        total += len(heldout[-1])
    return Prompts(torch.tensor([ids[:tokens] for ids in spread]), heldout)


@torch.no_grad()
def continuations(
    model: PreTrainedModel, prompts_PQ: Tensor, config: GenerationConfig, *, context: int, seed: int
) -> dict[str, list[list[int]]]:
    """Greedy and sampled continuations of every prompt, up to the end token."""
    room, ends = room_for(prompts_PQ, config, context), end_tokens(model)
    shared: dict[str, Any] = {"max_new_tokens": room, "eos_token_id": ends or None, "use_cache": True}
    shared |= {"pad_token_id": ends[0] if ends else 0}
    ways: dict[str, dict[str, Any]] = {
        "greedy": {"do_sample": False},
        "sampled": {"do_sample": True, "temperature": config.temperature, "top_k": 0, "top_p": 1.0},
    }
    found: dict[str, list[list[int]]] = {}
    for way, arguments in ways.items():
        torch.manual_seed(seed)
        ids_PT = generated(model, prompts_PQ, torch.ones_like(prompts_PQ), **shared | arguments)
        new = ids_PT[:, prompts_PQ.shape[1] :].tolist()
        found[way] = [until_end(ids, ends) for ids in new]
    return found


def _grams(ids: list[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(ids[at : at + size]) for at in range(len(ids) - size + 1)]


def repetition(texts: list[list[int]]) -> float:
    """Mean over texts of 1 - distinct / all 4-grams; a text too short for two of them repeats nothing."""
    shares = []
    for ids in texts:
        grams = _grams(ids, _GRAM)
        shares.append(1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0)
    return sum(shares) / len(shares) if shares else 0.0


def distinct(texts: list[list[int]], size: int) -> float:
    """distinct-n: different n-grams over all n-grams of all texts. Li et al. 2016."""
    grams = [gram for ids in texts for gram in _grams(ids, size)]
    return len(set(grams)) / len(grams) if grams else 0.0


def one_token_share(texts: list[list[int]]) -> float:
    """Share of the texts that are one token over and over (four fifths of it, and eight tokens or more)."""
    stuck = [len(ids) >= 8 and max(Counter(ids).values()) >= _ONE_TOKEN * len(ids) for ids in texts]
    return sum(stuck) / len(stuck) if stuck else 0.0


def agreement(texts: list[list[int]], dense: list[list[int]]) -> float:
    """Mean share of the dense model's greedy continuation that is written before the first token that differs."""
    shares = []
    for ours, theirs in zip(texts, dense, strict=True):
        same = list(takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False)))
        longer = max(len(ours), len(theirs))
        shares.append(len(same) / longer if longer else 1.0)
    return sum(shares) / len(shares) if shares else 1.0


def completion(texts: list[list[int]], room: int) -> dict[str, float]:
    """Mean length in tokens, and the share that the model ended itself: those shorter than the `room` they had."""
    count = max(1, len(texts))
    return {"length": sum(map(len, texts)) / count, "finished": sum(len(ids) < room for ids in texts) / count}


def room_for(prompts_PQ: Tensor, config: GenerationConfig, context: int) -> int:
    """The most new tokens of a continuation."""
    return min(config.new_tokens, context - prompts_PQ.shape[1])


def describe(texts: dict[str, list[list[int]]]) -> dict[str, Any]:
    """Repetition, distinct-1 and -2, stuck and empty continuations, of each way of writing."""
    return {
        way: {
            "repetition": repetition(ids),
            "distinct_1": distinct(ids, 1),
            "distinct_2": distinct(ids, 2),
            "one_token": one_token_share(ids),
            "empty": sum(not text for text in ids) / len(ids),
        }
        for way, ids in texts.items()
    }


def degenerate(measured: dict[str, Any], dense: dict[str, Any] | None, limit: float) -> list[str]:
    """What is wrong with the continuations, in words; empty when nothing is.

    Greedy text of a small model often repeats itself, so it is compared with the dense model's; one token
    over and over, and repetition in sampled text, are wrong in any model.
    """
    greedy, sampled = measured["greedy"], measured["sampled"]
    reasons = []
    if greedy["one_token"] >= 0.5:
        reasons.append(f"{greedy['one_token']:.0%} of the greedy continuations are one token over and over")
    if sampled["repetition"] > limit:
        reasons.append(f"sampled text repeats {sampled['repetition']:.0%} of its 4-grams")
    if dense and greedy["repetition"] - dense["greedy"]["repetition"] > limit:
        reasons.append(
            f"greedy text repeats {greedy['repetition']:.0%} of its 4-grams, the dense model's "
            f"{dense['greedy']['repetition']:.0%}"
        )
    if greedy["empty"] > 0.5 and not (dense and dense["greedy"]["empty"] > 0.5):
        reasons.append(f"{greedy['empty']:.0%} of the greedy continuations are empty")
    return reasons


@torch.no_grad()
def predictions(model: PreTrainedModel, heldout: list[list[int]]) -> list[Tensor]:
    """log P(token | before) at every position of every text, [T, V] float32 on the CPU."""

    def run(budget: int) -> list[Tensor]:
        found: list[Tensor] = [torch.empty(0)] * len(heldout)
        for batch in batches_by_length([len(ids) for ids in heldout], budget):
            tokens_BT = right_padded([heldout[number] for number in batch], pad=0).to(model.device)
            logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
            for number, logits_TV in zip(batch, logits_BTV, strict=True):
                found[number] = logits_TV[: len(heldout[number])].float().log_softmax(-1).cpu()
        return found

    return within_memory(run, token_budget(model))


def divergence(top_tokens_TK: Tensor, top_log_p_TK: Tensor, log_q_TV: Tensor) -> tuple[float, float]:
    """(mean over positions of KL(dense || model) in nats, share of positions with the same likeliest token).

    The dense model's K likeliest tokens, likeliest first, and one bucket for the others: exact when K is the whole
    vocabulary, else a lower bound (the data-processing inequality).
    """
    log_p, log_q = top_log_p_TK.double(), log_q_TV.double().gather(-1, top_tokens_TK.long())
    kl_T = (log_p.exp() * (log_p - log_q)).sum(-1)
    if top_tokens_TK.shape[-1] < log_q_TV.shape[-1]:
        rest_p, rest_q = ((1 - part.exp().sum(-1)).clamp_min(1e-12) for part in (log_p, log_q))
        kl_T = kl_T + rest_p * (rest_p.log() - rest_q.log())
    same = (log_q_TV.argmax(-1) == top_tokens_TK[:, 0]).double()
    return float(kl_T.mean().clamp_min(0)), float(same.mean())
