"""Token perplexity on held-out texts.

Letters: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from restorelcc.core.errors import BadInput
from restorelcc.core.progress import progress
from restorelcc.core.text import batches_of_equal_length, encode_documents


@torch.no_grad()
def token_perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    max_tokens: int,
    *,
    token_budget: int = 8192,
) -> dict[str, float | int]:
    """exp(mean over tokens of -log P(token | earlier tokens of its text)); {"tokens": scored tokens, "value": ...}.

    Every text is a sequence of its own, cut to max_tokens; its first token has nothing before it and is not scored.
    Raises BadInput when no text has two tokens.
    """
    documents = encode_documents(tokenizer, texts, max_tokens)
    if not documents:
        raise BadInput("the held-out texts hold no sequence of two tokens: perplexity needs longer texts")
    total, tokens = 0.0, 0
    batches = list(batches_of_equal_length([len(ids) for ids in documents], token_budget))
    for batch in progress(batches, "perplexity", "batches"):
        tokens_BT = torch.tensor([documents[number] for number in batch], device=model.device)
        logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
        loss = cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), tokens_BT[:, 1:].flatten(), reduction="sum")
        total += loss.item()
        tokens += tokens_BT[:, 1:].numel()
    return {"tokens": tokens, "value": math.exp(total / tokens)}
