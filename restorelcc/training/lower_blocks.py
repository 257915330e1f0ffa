"""The blocks below the lowest one that trains: what they make of a pair never changes, so it is computed once and kept.

On a CPU every pair passes through them alone, whether or not there is room to keep the result: a number must not depend
on which other pairs a batch holds, nor on the memory. On a GPU those of a batch that are not kept run together.

Letters: B batch, T tokens, M model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from restorelcc.base.progress import notice
from restorelcc.models.architectures import all_blocks, family_of, numbered_blocks, text_config
from restorelcc.models.hooks import hooked
from restorelcc.models.text import right_padded
from restorelcc.models.walk import forwards_replaced, walk_blocks
from restorelcc.training.attached import TrainableCompensation
from restorelcc.training.losses import tokens_that_pay

_BYTES = {"cpu": 2**29, "cuda": 2**32}  # of the host's memory, that may be filled
_ALONE = 0.25  # of the tokens that keep a CPU busy: pairs that are shorter on average take longer one by one


def lowest_trained(model: PreTrainedModel, trained: TrainableCompensation) -> int:
    """The number, among all blocks, of the lowest block that something trains in."""
    layers = {layer for layer, _ in trained.heads.heads} if trained.heads is not None else set()
    layers |= {int(name.partition(".")[0]) for name in (trained.sites.sites if trained.sites is not None else ())}
    numbers = [number for number, _ in numbered_blocks(model)]
    return min((numbers[layer] for layer in layers), default=0)


def bytes_kept(device: str, width: int, itemsize: int, lengths: Sequence[float]) -> int:
    """Bytes that what is kept of sequences may take: width * itemsize for each token, within the limit. 0 where nothing
    is kept, as the sequences are so short that a CPU computes them faster in batches, again and again."""
    short = device == "cpu" and sum(lengths) < _ALONE * tokens_that_pay(device, width) * len(lengths)
    return 0 if short else int(min(_BYTES["cpu" if device == "cpu" else "cuda"], sum(lengths) * width * itemsize))


@contextmanager
def kept_below(
    model: PreTrainedModel, first: int, sequences: Sequence[list[int]], title: str, limit: int | None = None
) -> Iterator[None]:
    """Inside, forwards of the model over these sequences, padded on the right or several on a line, begin at block
    `first`.

    What enters it is kept, in the dtype of the activations, of as many sequences as `limit` bytes hold; of the others
    it is computed each time. A gradient ends there: nothing below may train. Weights that are spread over processes
    take part as always, as every process has to run every block.
    """
    width, size = int(text_config(model.config).hidden_size), model.dtype.itemsize
    most = bytes_kept(model.device.type, width, size, list(map(len, sequences))) if limit is None else limit
    spread = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    if first == 0 or spread or (limit is None and not most):
        yield
        return
    lower = _LowerBlocks(model, first, sequences, most)
    if (needed := sum(map(len, sequences)) * width * size) > most:
        notice(
            title,
            f"of what enters block {first}, the lowest that trains, {most / 2**20:,.0f} of {needed / 2**20:,.0f} MiB "
            "are kept; for the other pairs the blocks below run again each time",
        )
    with lower.taken_over():
        yield


class _Placed(NamedTuple):
    """A sequence in a batch: its line, where in it it begins, its tokens."""

    line: int
    start: int
    ids: tuple[int, ...]


class _LowerBlocks:
    def __init__(self, model: PreTrainedModel, first: int, sequences: Sequence[list[int]], limit: int) -> None:
        self.model, self.first, self.left = model, first, limit
        self.known = set(map(tuple, sequences))
        self.kept: dict[tuple[int, ...], Tensor] = {}
        self.entering_BTM: Tensor | None = None  # of the forward under way

    @contextmanager
    def taken_over(self) -> Iterator[None]:
        in_tuple = family_of(self.model).output_in_tuple

        def passing(layer: int, own: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                if self.entering_BTM is None:
                    return own(*args, **kwargs)
                hidden_BTM = args[0] if args else kwargs["hidden_states"]
                if layer == 0:
                    hidden_BTM = self.entering_BTM.to(hidden_BTM)
                return (hidden_BTM, None) if in_tuple else hidden_BTM

            return forward

        below = list(all_blocks(self.model))[: self.first]
        with (
            forwards_replaced((block, passing(layer, block.forward)) for layer, block in enumerate(below)),
            hooked([(None, self.model)], lambda _key: self._look_up, expected=1, keywords=True),
        ):
            yield

    def _look_up(self, _model: nn.Module, _arguments: Any, keywords: dict[str, Any]) -> None:
        """Before a forward: what enters block `first`, where all sequences of the batch are known."""
        self.entering_BTM = None
        if {"input_ids", "use_cache"} - set(keywords) or keywords["use_cache"]:
            return
        others = set(keywords) - {"input_ids", "use_cache"}
        lines = keywords["input_ids"].tolist()
        if not others:
            placed = [_Placed(number, 0, self._own(ids)) for number, ids in enumerate(lines)]
        elif others == {"attention_mask", "position_ids"}:  # of `packing.model_inputs`
            placed = _on_lines(lines, keywords["position_ids"].tolist())
        else:
            return
        if all(each.ids in self.known for each in placed):
            self.entering_BTM = self._entering(placed, len(lines), len(lines[0]))

    def _own(self, ids: list[int]) -> tuple[int, ...]:
        """The known sequence that a row holds before its padding; the row itself where there is none."""
        own = tuple(ids)
        while own not in self.known and len(own) > 1 and own[-1] == ids[-1]:
            own = own[:-1]
        return own if own in self.known else tuple(ids)

    @torch.no_grad()
    def _entering(self, placed: list[_Placed], lines: int, length: int) -> Tensor:
        """[B, T, M]; zeros where there is padding, which no token sees."""
        rows = list(dict.fromkeys(each.ids for each in placed))
        found = {row: self.kept[row] for row in rows if row in self.kept}
        absent = [row for row in rows if row not in found]
        for group in [absent] if self.model.device.type != "cpu" and absent else [[row] for row in absent]:
            tokens_BT = right_padded([list(row) for row in group], pad=0).to(self.model.device)
            hidden_BTM = next(
                step.hidden_BTM[0] for step in walk_blocks(self.model, [tokens_BT]) if step.layer == self.first
            )
            for row, hidden_TM in zip(group, hidden_BTM, strict=True):
                found[row] = hidden_TM[: len(row)].cpu()
                if (size := found[row].nbytes) <= self.left:
                    self.kept[row] = found[row]
                    self.left -= size
        one_TM = found[rows[0]]
        entering_BTM = one_TM.new_zeros(lines, length, one_TM.shape[-1])
        for each in placed:
            entering_BTM[each.line, each.start : each.start + len(each.ids)] = found[each.ids]
        return entering_BTM


def _on_lines(lines: list[list[int]], positions: list[list[int]]) -> list[_Placed]:
    """The sequences of lines, of two tokens or more: positions count up along each, and are 0 throughout padding."""
    placed = []
    for number, (ids, places) in enumerate(zip(lines, positions, strict=True)):
        starts = [*(at for at, place in enumerate(places) if place == 0), len(ids)]
        placed += [_Placed(number, at, tuple(ids[at:end])) for at, end in pairwise(starts) if end - at > 1]
    return placed
