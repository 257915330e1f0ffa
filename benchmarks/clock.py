"""How long a call takes, and the shortest backward that a training step can have: for several benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.models.hooks import hooked


def wall_seconds(action: Callable[[], object]) -> float:
    """By the clock."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def cpu_seconds(action: Callable[[], object]) -> float:
    """CPU time of this process: others on the machine count little."""
    started = time.process_time()
    action()
    return time.process_time() - started


@contextmanager
def backward_to_embeddings(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a backward goes through all activations down to the output of the embeddings, and to no parameter."""

    def leaf(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        return output.detach().requires_grad_()

    with hooked([(None, model.get_input_embeddings())], lambda _key: leaf, expected=1, after=True):
        yield
