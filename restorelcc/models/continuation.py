"""What a model writes after a prompt: many prompts in batches, sampled, the same text for the same seed.

Letters: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from restorelcc.models.text import batches_by_length

_TOKENS = {"cpu": 8192, "cuda": 65536}


@dataclass(frozen=True)
class Continuation:
    """The new tokens without the end token, and whether the model ended them itself."""

    ids: list[int]
    finished: bool


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen: up to `new_tokens` of them, softmax(logits / temperature); a temperature of 0 takes the
    likeliest."""

    new_tokens: int
    temperature: float
    seed: int

    def arguments(self) -> dict[str, Any]:
        """As transformers' GenerationConfig takes them."""
        how = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        return {"max_new_tokens": self.new_tokens} | (how if self.temperature else {"do_sample": False})


def end_tokens(model: PreTrainedModel) -> list[int]:
    """The ids that end a text, by the model's generation config; none where it names none."""
    end = model.generation_config.eos_token_id if model.generation_config else None
    return [] if end is None else [end] if isinstance(end, int) else list(end)


def until_end(ids: list[int], ends: list[int]) -> list[int]:
    """The tokens before the first that ends a text."""
    return next((ids[:at] for at, token in enumerate(ids) if token in ends), ids)


def most_tokens(device: torch.device) -> int:
    """Of one batch, prompts and what may be written."""
    return _TOKENS["cuda" if device.type == "cuda" else "cpu"]


def batches_of(prompts: list[list[int]], sampling: Sampling, device: torch.device) -> list[list[int]]:
    """Positions of the prompts that are continued together, of similar length."""
    return batches_by_length([len(ids) + sampling.new_tokens for ids in prompts], most_tokens(device))


@torch.no_grad()
def generated(model: PreTrainedModel, tokens_BT: Tensor, mask_BT: Tensor, **how: Any) -> Tensor:
    """`model.generate` by these settings and no others, [B, T]. What they leave open transformers would take from the
    model's generation config, which may ban what was written before (repetition_penalty) or rare tokens (min_p)."""
    own, model.generation_config = model.generation_config, transformers.GenerationConfig()
    try:
        generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]  # not the attribute of a module
        return generate(
            tokens_BT.to(model.device),
            attention_mask=mask_BT.to(model.device),
            generation_config=transformers.GenerationConfig(**how),
        )
    finally:
        model.generation_config = own


@torch.no_grad()
def continued(model: PreTrainedModel, prompts: list[list[int]], sampling: Sampling) -> list[Continuation]:
    """Continuations of prompts of any lengths, together; shorter ones are padded on the left, which nothing attends to.

    The random numbers are those of the seed and the first prompt's tokens: equal batches are continued equally.
    """
    longest, ends = max(map(len, prompts)), end_tokens(model)
    pad = ends[0] if ends else 0
    tokens_BT = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts])
    mask_BT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    torch.manual_seed(sampling.seed + sum(prompts[0]))
    how = {"eos_token_id": ends or None, "pad_token_id": pad, "use_cache": True} | sampling.arguments()
    ids_BT = generated(model, tokens_BT, mask_BT, **how)
    # A row that has ended is filled up with the end token: only one that has not is as long as it may be.
    found = [until_end(row, ends) for row in ids_BT[:, longest:].tolist()]
    return [Continuation(ids, finished=len(ids) < sampling.new_tokens) for ids in found]
