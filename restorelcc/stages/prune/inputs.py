"""Statistics of the inputs of a block's linears during calibration: squares, Gram matrices, sampled inputs.

Letters: N tokens, K sampled tokens, I input features.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from restorelcc.models.hooks import observed

_WIDE_AT_ONCE = 2**22  # numbers in float64


class InputStatistics:
    """Statistics of every linear's input; linears that receive the very same tensor (q, k, v) share theirs."""

    def __init__(self, *, squares: bool, gram_of: Collection[str], means: bool, stride: int) -> None:
        self._squares, self._gram_of, self._means, self._stride = squares, gram_of, means, stride
        self._leader: dict[str, str] = {}
        self._squares_I: dict[str, Tensor] = {}
        self._gram_II: dict[str, Tensor] = {}  # of x - shift, where means are wanted
        self._shift_I: dict[str, Tensor] = {}  # the first batch's mean: what is left of x then loses no digits to it
        self._sum_I: dict[str, Tensor] = {}  # of x - shift
        self._sampled_KI: dict[str, list[Tensor]] = {}
        self._tokens: dict[str, int] = {}
        self._last: tuple[str, Tensor | None] = ("", None)

    def squares_I(self, name: str) -> Tensor:
        """Sum of x_i^2 over all tokens, [I] float64."""
        return self._squares_I[self._leader[name]]

    def gram_II(self, name: str) -> Tensor:
        """Sum of x x^T over all tokens, [I, I] float32."""
        if not self._means:
            return self._gram_II[self._leader[name]]
        return _with_outer(self.centred_gram_II(name), self.mean_I(name), self._tokens[self._leader[name]])

    def mean_I(self, name: str) -> Tensor:
        """Mean of x over all tokens, [I] float64."""
        leader = self._leader[name]
        return self._shift_I[leader].double() + self._sum_I[leader] / self._tokens[leader]

    def centred_gram_II(self, name: str) -> Tensor:
        """Sum of (x - mean)(x - mean)^T over all tokens, [I, I] float32."""
        leader = self._leader[name]
        centred_II = _with_outer(self._gram_II[leader], self._sum_I[leader], -1 / self._tokens[leader])
        centred_II.diagonal().clamp_min_(0)  # an input that never changes has rounding there, which may be below 0
        return centred_II

    def forget(self, name: str) -> None:
        """Free what was collected for a linear and those that share its input."""
        leader = self._leader[name]
        for collected in (self._squares_I, self._gram_II, self._shift_I, self._sum_I, self._sampled_KI):
            collected.pop(leader, None)

    def sampled_KI(self, name: str) -> Tensor:
        """Every stride-th token's input, [K, I] float32."""
        return torch.cat(self._sampled_KI[self._leader[name]]).float()

    def groups(self, names: Iterable[str]) -> list[list[str]]:
        """Names that share their inputs, together, in the order given."""
        found: dict[str, list[str]] = {}
        for name in names:
            found.setdefault(self._leader[name], []).append(name)
        return list(found.values())

    def finish(self) -> None:
        """Let go of the input seen last, which is kept to know whether the next linear receives it too."""
        self._last = ("", None)

    def observe(self, name: str, inputs: Tensor) -> None:
        """Add the inputs [..., I] of one call of one linear."""
        leader, last = self._last if self._last[1] is inputs else (name, None)
        if self._leader.setdefault(name, leader) != leader:
            raise RuntimeError(f"{name} shares its input with other layers in one batch and not in another")
        if last is not None:
            return
        self._last = (name, inputs)
        x_NI = inputs.reshape(-1, inputs.shape[-1])
        if self._squares:
            squares_I = x_NI.float().square().sum(dim=0).double()
            self._squares_I[name] = self._squares_I[name] + squares_I if name in self._squares_I else squares_I
        if name in self._gram_of:
            wide_NI = self._shifted(name, x_NI.float()) if self._means else x_NI.float()
            if name not in self._gram_II:
                self._gram_II[name] = wide_NI.new_zeros(wide_NI.shape[1], wide_NI.shape[1])
            self._gram_II[name].addmm_(wide_NI.T, wide_NI)
        seen = self._tokens.get(name, 0)
        self._tokens[name] = seen + len(x_NI)
        self._sampled_KI.setdefault(name, []).append(x_NI[-seen % self._stride :: self._stride].clone())

    def _shifted(self, name: str, x_NI: Tensor) -> Tensor:
        if name not in self._shift_I:
            self._shift_I[name] = x_NI.mean(dim=0)
            self._sum_I[name] = torch.zeros_like(self._shift_I[name], dtype=torch.float64)
        shifted_NI = x_NI - self._shift_I[name]
        self._sum_I[name] += shifted_NI.sum(dim=0, dtype=torch.float64)
        return shifted_NI


def _with_outer(gram_II: Tensor, vector_I: Tensor, factor: float) -> Tensor:
    """G + factor * v v^T, a new float32 matrix, added in float64; some rows at a time, as all would take two more."""
    result_II = torch.empty_like(gram_II)
    rows = max(1, _WIDE_AT_ONCE // len(gram_II))
    for result_RI, gram_RI, vector_R in zip(
        result_II.split(rows), gram_II.split(rows), vector_I.split(rows), strict=True
    ):
        result_RI.copy_(gram_RI.double().addr_(vector_R, vector_I, alpha=factor))
    return result_II


@contextmanager
def observed_inputs(
    linears: dict[str, nn.Linear],
    *,
    squares: bool = False,
    gram_of: Collection[str] = (),
    means: bool = False,
    stride: int = 1,
) -> Iterator[InputStatistics]:
    """Collect statistics of all tokens that pass through the linears inside the block.

    squares: the sums of squares of each input feature; gram_of: names whose Gram matrix is wanted; means: with it their
    mean, and the Gram matrix about it; every `stride`-th token is kept whole, counted over all calls.
    """
    statistics = InputStatistics(squares=squares, gram_of=gram_of, means=means, stride=stride)

    try:
        with observed(linears.items(), statistics.observe, expected=len(linears)):
            yield statistics
    finally:
        statistics.finish()
