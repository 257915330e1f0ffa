"""Rows of a user's file or of a dataset, each with the number by which a message names it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """Numbered rows, read once. `unit`: what the numbers count, lines of a .jsonl or .txt file or else rows."""

    name: str  # of the file or dataset, as a message has it
    numbered: Iterable[tuple[int, Row]]
    unit: str = "row"
    origin: dict[str, Any] = field(default_factory=dict)  # what is recorded of it: source, revision or sha256

    def place(self, number: int) -> str:
        """ "line 17 of pairs.jsonl"."""
        return f"{self.unit} {number} of {self.name}"
