"""Perplexity in the ways the field reports it, with names that cannot be confused.

- of documents: every text a sequence of its own;
- of blocks: all texts joined and cut into blocks of one length, as the pruning literature does with WikiText-2;
- of words: every token scored once in rolling windows and counted per word, as lm-eval's `wikitext` does.

Letters: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from restorelcc.base.errors import BadInput
from restorelcc.base.progress import progress
from restorelcc.models.text import batches_of_equal_length, encode_documents
from restorelcc.stages.evaluate.batches import token_budget, within_memory

Measure = dict[str, float | int | None]


@torch.no_grad()
def losses(model: PreTrainedModel, sequences: list[list[int]], scored: list[int], title: str) -> list[float]:
    """-log P(last `scored` tokens | what is before them in their sequence), in nats, for every sequence."""

    def run(budget: int) -> list[float]:
        found = [0.0] * len(sequences)
        batches = list(batches_of_equal_length([len(ids) for ids in sequences], budget))
        for batch in progress(batches, title, "batches"):
            tokens_BT = torch.tensor([sequences[number] for number in batch], device=model.device)
            logits_BTV = model(input_ids=tokens_BT[:, :-1], use_cache=False).logits
            loss_BT = cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BT[:, 1:].flatten(), reduction="none")
            loss_BT = loss_BT.view(len(batch), -1)
            for number, loss_T in zip(batch, loss_BT.double(), strict=True):
                found[number] = loss_T[-scored[number] :].sum().item()
        return found

    return within_memory(run, token_budget(model))


def _perplexity(total: float, count: int) -> float | None:
    """exp(total / count); None beyond what a number can hold."""
    return math.exp(total / count) if total / count < 700 else None


def text_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], max_tokens: int
) -> list[dict[str, Any]]:
    """Rows of base/tables.py's TEXT_SCORES: log P(token | earlier tokens of its text), in nats, summed over each text.

    Every text is a sequence of its own, cut to max_tokens; its first token has nothing before it and is not scored.
    Raises BadInput when no text has two tokens.
    """
    encoded = encode_documents(tokenizer, texts, max_tokens, minimum=0)
    kept = [number for number, ids in enumerate(encoded) if len(ids) > 1]
    if not kept:
        raise BadInput("the held-out texts hold no sequence of two tokens: perplexity needs longer texts")
    documents = [encoded[number] for number in kept]
    scored = [len(ids) - 1 for ids in documents]
    found = losses(model, documents, scored, "perplexity of documents")
    return [
        {"text_id": number, "digest": _digest(texts[number]), "tokens": tokens, "log_likelihood": -loss}
        for number, tokens, loss in zip(kept, scored, found, strict=True)
    ]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def document_perplexity(rows: list[dict[str, Any]]) -> Measure:
    """exp(mean over tokens of -log P) of `text_scores`; {"tokens": scored tokens, "value": ...}."""
    total, tokens = -sum(row["log_likelihood"] for row in rows), sum(row["tokens"] for row in rows)
    return {"tokens": tokens, "value": _perplexity(total, tokens)}


def block_perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], sequence_length: int
) -> Measure:
    """exp(mean of -log P(token | earlier tokens of its block)) over blocks of sequence_length tokens.

    All texts are joined by blank lines, tokenized at once and cut into blocks; the rest at the end is left out, and
    the first token of a block is not scored. Texts shorter than one block are one shorter block.
    """
    ids = tokenizer("\n\n".join(texts))["input_ids"]
    length = min(sequence_length, len(ids))
    blocks = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    tokens = len(blocks) * (length - 1)
    total = sum(losses(model, blocks, [length - 1] * len(blocks), "perplexity of blocks"))
    return {
        "sequence_length": length,
        "blocks": len(blocks),
        "tokens": tokens,
        "value": _perplexity(total, tokens),
    }


def word_perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], max_tokens: int
) -> Measure:
    """exp(-log P(all tokens) / words), and the same per byte in bits. lm-eval's loglikelihood_rolling.

    Every token of a text is scored once, in windows of max_tokens that each begin with a token or more of the one
    before; the first begins with the tokenizer's BOS or, where it has none, EOS token. Words are parted by white space,
    bytes are those of UTF-8.
    """
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if prefix is None:
        raise BadInput("the tokenizer has neither a BOS nor an EOS token: word perplexity needs one before the text")
    sequences, scored = [], []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for window in get_rolling_token_windows(ids, prefix, max_tokens, 1):
            context, predicted = make_disjoint_window(window)
            sequences.append(context + predicted)
            scored.append(len(predicted))
    total = sum(losses(model, sequences, scored, "perplexity of words"))
    words, size = sum(len(text.split()) for text in texts), sum(len(text.encode()) for text in texts)
    return {
        "words": words,
        "tokens": sum(scored),
        "value": _perplexity(total, words),
        "bytes": size,
        "bits_per_byte": total / size / math.log(2) if math.isfinite(total) else None,
    }
