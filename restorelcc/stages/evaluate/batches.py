"""The size of one forward pass: a budget of tokens, halved when memory runs out.

A result does not depend on it, up to the rounding of sums taken in another order (about 1e-6 of a log-likelihood).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from restorelcc.base.errors import StageFailed, first_line

T = TypeVar("T")
LONGEST = 2048  # tokens of a window of running text, and of a request to a model that names no context
_LOGITS = {"cpu": 2**26, "cuda": 2**31}  # entries of one batch of logits; on a CPU larger ones are no faster
_TOKENS = {"cpu": 8192, "cuda": 65536}


def token_budget(model: PreTrainedModel) -> int:
    """Tokens of one batch to begin with."""
    return first_budget(model.device.type, model.config.get_text_config().vocab_size)


def first_budget(device: str, vocabulary: int) -> int:
    """Tokens, bounded by the logits, which for a large vocabulary outweigh the rest."""
    kind = "cuda" if device == "cuda" else "cpu"
    return max(1, min(_TOKENS[kind], _LOGITS[kind] // vocabulary))


def within_memory(run: Callable[[int], T], budget: int) -> T:
    """run(budget), with half the budget each time the device is out of memory. Raises StageFailed at the last."""
    while True:
        try:
            return run(budget)
        except torch.OutOfMemoryError as error:
            if budget <= 1:
                raise StageFailed(
                    f"the model does not fit into memory with one sequence: {first_line(error)}; evaluate shorter "
                    "sequences (evaluate.perplexity_tokens) or on a device with more memory"
                ) from error
            budget //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def budgeted_lm(base: type, budget: int, **arguments: Any) -> Any:
    """lm-eval's model class `base` whose automatic batch holds `budget` tokens; nothing is tried out beforehand.

    lm-eval asks for the size of a batch again with every request that it puts in, the longest first. The first decides,
    since all are padded to its length.
    """

    class Budgeted(base):
        _rows, _next = 1, 0  # of the batch being filled; the request that begins another

        def _batch_scheduler(self, pos: int, n_reordered_requests: list[tuple[Any, list[int], list[int]]]) -> int:
            if pos in (0, self._next):
                _, context, continuation = n_reordered_requests[pos]
                self._rows = max(1, budget // min(len(context) + len(continuation), self.max_length))
                self._next = pos + self._rows
            return self._rows

        def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:
            return max(1, budget // min(self.max_length, LONGEST))

    return Budgeted(batch_size="auto", **arguments)


def windowed(base: Any) -> Any:
    """lm-eval's model class `base` whose rolling windows have 2,048 tokens at most: the logits of a whole context of
    100,000 tokens would take all memory. Requests are as long as the model's context."""

    class Windowed(base):
        _max_length: int

        def loglikelihood_rolling(self, *arguments: Any, **keywords: Any) -> list[float]:
            whole = self.max_length
            self._max_length = min(whole, LONGEST)
            try:
                return super().loglikelihood_rolling(*arguments, **keywords)
            finally:
                self._max_length = whole

    return Windowed
