"""Continuations of one text in one row: their common start is computed once, and none of them sees another.

Letters: B batch, T tokens of a line, R rows.

A row holds the first sequence and then what each other has beyond their common start. Attention is a tree: a token sees
those before it in its own sequence, and position ids and windows count along that sequence, so that every token's
activations are those of a pass over its sequence alone. Short rows may share a line of the batch, where none sees
another: attention over many short lines costs more a token than over fewer longer ones, and less is padding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from restorelcc.models.architectures import family_of, text_config

PaddingSide = Literal["right", "left"]
_TRUNK, _FIRST, _SECOND = 0, 1, 2  # which sequence a token of a row belongs to; the trunk is all of theirs
_SEQUENCES = 64  # of one row, with its trunk, at most
_LEAST_SHARED = 8  # a sequence shares its start where that times as much is the whole of it
_PADDING = -1
LINE = 64  # tokens up to which rows share a line
_LANES = (
    16  # numbers of a CPU's vector: attention over a short line takes up to three times as long for what is left over
)
_ADDITIVE = ("sdpa", "eager")  # attention implementations that take any mask, added to the scores


@dataclass(frozen=True)
class Row:
    """One or two sequences as one row; `trunk` tokens at its start belong to both."""

    ids: list[int]
    first: int  # tokens of the first sequence
    trunk: int

    @property
    def branches(self) -> bool:
        """Whether a second sequence goes on from the trunk."""
        return len(self.ids) > self.first

    @property
    def positions(self) -> list[int]:
        """Each token's place in its own sequence."""
        return [*range(self.first), *range(self.trunk, self.trunk + len(self.ids) - self.first)]

    def branch(self, number: int) -> list[int]:
        """Which sequence each token belongs to, when the row is this one of its line."""
        counts = {_TRUNK: self.trunk, _FIRST: self.first - self.trunk, _SECOND: len(self.ids) - self.first}
        return [_SEQUENCES * number + which for which, count in counts.items() for _ in range(count)]

    def second(self, place: int) -> int:
        """Where in the row the second sequence's token at `place` stands."""
        return place if place < self.trunk else self.first + place - self.trunk


@dataclass(frozen=True)
class Tree:
    """Any number of sequences as one row: `trunk`, which begins all of them, and what each has beyond it."""

    trunk: list[int]
    tails: list[list[int]]

    @property
    def ids(self) -> list[int]:
        return [*self.trunk, *(token for tail in self.tails for token in tail)]

    @property
    def branches(self) -> bool:
        """Whether more than one sequence goes on from the trunk."""
        return sum(map(bool, self.tails)) > 1

    @property
    def positions(self) -> list[int]:
        """Each token's place in its own sequence."""
        start = len(self.trunk)
        return [*range(start), *(start + place for tail in self.tails for place in range(len(tail)))]

    def branch(self, number: int) -> list[int]:
        """Which sequence each token belongs to, when the row is this one of its line."""
        counts = [len(self.trunk), *map(len, self.tails)]
        return [_SEQUENCES * number + which for which, count in enumerate(counts) for _ in range(count)]

    def place(self, sequence: int, place: int) -> int:
        """Where in the row the token at `place` of one of the sequences stands."""
        before = sum(len(tail) for tail in self.tails[:sequence])
        return place if place < len(self.trunk) else place + before


def trees_of(sequences: Sequence[list[int]], longest: int) -> list[tuple[Tree, list[int]]]:
    """The sequences as trees, each with the numbers of its sequences: neighbours in the order of their tokens share
    their common start where that saves tokens, and no tree of several has more than `longest`.

    A start of less than an eighth of the sequence that is added, such as a BOS token, is not shared: attention over one
    row of many sequences would cost more than the tokens that it saves.
    """
    groups: list[tuple[int, list[int]]] = []  # tokens of the trunk, members
    for number in sorted(range(len(sequences)), key=sequences.__getitem__):
        tokens = sequences[number]
        if groups:
            trunk, members = groups[-1]
            shared = min(trunk, _common(sequences[members[0]], tokens))
            saves = shared > (len(members) - 1) * (trunk - shared) and _LEAST_SHARED * shared >= len(tokens)
            together = [*members, number]
            size = shared + sum(len(sequences[member]) - shared for member in together)
            if saves and len(together) < _SEQUENCES and size <= longest:
                groups[-1] = shared, together
                continue
        groups.append((len(tokens), [number]))
    return [
        (Tree(sequences[members[0]][:trunk], [sequences[number][trunk:] for number in members]), members)
        for trunk, members in groups
    ]


def _common(one: list[int], other: list[int]) -> int:
    """Tokens that two sequences begin with."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def alone(ids: list[int]) -> Row:
    """A row of one sequence."""
    return Row(ids, len(ids), len(ids))


def packed(first: list[int], second: list[int]) -> Row:
    """A row of two sequences that share their longest common start."""
    trunk = _common(first, second)
    return Row(first + second[trunk:], len(first), trunk)


def can_pack(model: PreTrainedModel) -> bool:
    """Whether the model's attention takes a mask of any shape; flash attention and ALiBi do not."""
    return family_of(model).packs and model.config._attn_implementation in _ADDITIVE


def lines_of(lengths: Sequence[int], longest: int = LINE) -> list[list[int]]:
    """Which rows, by their number, share a line: longest first, filled up with the shortest ones.

    A line holds at most `longest` tokens; a row of more has one to itself.
    """
    left = deque(sorted(range(len(lengths)), key=lambda row: -lengths[row]))
    lines = []
    while left:
        line = [left.popleft()]
        room = longest - lengths[line[0]]
        for take, candidate in ((left.popleft, 0), (left.pop, -1)):
            while left and lengths[left[candidate]] <= room:
                room -= lengths[left[candidate]]
                line.append(take())
        lines.append(line)
    return lines


def even_lines(lengths: Sequence[int], width: int, most: int) -> list[list[int]]:
    """Which rows, by their number, share a line, so that passes over all lines take the least time.

    A token of a line of T tokens costs 1 + T / (6 width): in a block, attention has 4 T width operations for it, beside
    about 24 width^2 of the matrices. width: the model's. A line of several rows has at most `most` tokens, and where
    all lines can be had in one pass of as many, padding included, they are.
    """
    ordered = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    best: tuple[bool, int, list[list[int]]] | None = None
    for count in range(1, len(ordered) + 1):
        lines: list[list[int]] = [[] for _ in range(count)]
        shortest = [(0, number) for number in range(count)]  # a heap: tokens of each line
        for row in ordered:
            tokens, number = shortest[0]
            lines[number].append(row)
            heapreplace(shortest, (tokens + lengths[row], number))
        longest = max(shortest)[0]
        if longest > max(most, lengths[ordered[0]]):
            continue
        found = count * longest > most, count * longest * (6 * width + longest)
        if best is None or found < best[:2]:
            best = *found, lines
    return best[2] if best is not None else []


@dataclass(frozen=True)
class PaddedLines:
    """Lines of rows as a batch. line_R, start_R: in which line each row is, and where in it it begins."""

    tokens_BT: Tensor
    positions_BT: Tensor
    branch_BT: Tensor  # _SEQUENCES * row + which of the row's sequences a token belongs to, or _PADDING
    line_R: Tensor
    start_R: Tensor
    causal_is_enough: bool  # no token would see padding or another sequence under a plain causal mask


def padded(lines: Sequence[Sequence[Row | Tree]], pad: int, side: PaddingSide = "right") -> PaddedLines:
    """Put lines into one batch, padded on either side."""
    sizes = [sum(len(row.ids) for row in line) for line in lines]
    width = max(sizes)
    causal = all(len(line) == 1 and not line[0].branches for line in lines) and (side == "right" or min(sizes) == width)
    if width < LINE and not causal:  # a model that is given no positions counts the padding's too, up to its limit
        width = -(-width // _LANES) * _LANES
    columns: tuple[list[list[int]], ...] = ([], [], [])
    places = []
    for number, (line, size) in enumerate(zip(lines, sizes, strict=True)):
        before, after = (0, width - size) if side == "right" else (width - size, 0)
        parts: tuple[list[int], ...] = ([pad] * before, [0] * before, [_PADDING] * before)
        for place, row in enumerate(line):
            places.append((number, len(parts[0])))
            for part, values in zip(parts, (row.ids, row.positions, row.branch(place)), strict=True):
                part.extend(values)
        for column, part, neutral in zip(columns, parts, (pad, 0, _PADDING), strict=True):
            column.append(part + [neutral] * after)
    line_R, start_R = torch.tensor(places).unbind(1)
    tokens_BT, positions_BT, branch_BT = (torch.tensor(column) for column in columns)
    return PaddedLines(tokens_BT, positions_BT, branch_BT, line_R, start_R, causal)


def model_inputs(model: PreTrainedModel, lines: PaddedLines) -> dict[str, Any]:
    """Arguments of the model's forward for these lines. Raises ValueError when it cannot take the mask they need."""
    tokens_BT = lines.tokens_BT.to(model.device)
    if lines.causal_is_enough:
        return {"input_ids": tokens_BT, "use_cache": False}
    if not can_pack(model):
        raise ValueError(f"{model.config._attn_implementation} attention takes no mask: pad on the right, one sequence")
    seen_BTT = _seen(lines.branch_BT.to(model.device))
    positions_BT = lines.positions_BT.to(model.device)

    def additive(window: int | None) -> Tensor:
        allowed_BTT = seen_BTT
        if window is not None:
            allowed_BTT = seen_BTT & (positions_BT[:, :, None] - positions_BT[:, None, :] < window)
        hidden = torch.finfo(model.dtype).min
        return torch.zeros_like(allowed_BTT, dtype=model.dtype).masked_fill_(~allowed_BTT, hidden)[:, None]

    window = getattr(text_config(model.config), "sliding_window", None)
    windows = family_of(model).windows
    mask: Tensor | dict[str, Tensor]
    if windows == "listed":
        kinds = set(text_config(model.config).layer_types)
        if kinds - {"full_attention", "sliding_attention"}:
            raise ValueError(f"attention layers of the kinds {sorted(kinds)} are not all known")
        mask = {kind: additive(None if kind == "full_attention" else window) for kind in sorted(kinds)}
    else:
        mask = additive(window if windows == "every" else None)
    return {"input_ids": tokens_BT, "attention_mask": mask, "position_ids": positions_BT, "use_cache": False}


def _seen(branch_BT: Tensor) -> Tensor:
    """Which token (last axis) each token sees: earlier ones of its own sequence. Bool [B, T, T].

    Padding sees padding before it and itself, since a softmax over nothing is not a number.
    """
    tokens = branch_BT.shape[1]
    causal_TT = torch.ones(tokens, tokens, dtype=torch.bool, device=branch_BT.device).tril()
    row_BT = branch_BT.div(_SEQUENCES, rounding_mode="floor")
    same_row_BTT = row_BT[:, :, None] == row_BT[:, None, :]
    same_BTT = branch_BT[:, :, None] == branch_BT[:, None, :]
    trunk_B1T = (branch_BT % _SEQUENCES == _TRUNK)[:, None, :]
    return causal_TT & (same_BTT | (same_row_BTT & trunk_B1T))
