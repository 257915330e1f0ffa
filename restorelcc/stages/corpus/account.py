"""Rows of a user's data by number, and what became of them: every one is used, or skipped for a counted reason."""

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


NOT_DRAWN = "not drawn"
TOO_LONG = "too long"
NO_TOKEN = "no token of its own"


@dataclass
class Account:
    """Counts of one role's rows: read = used + skipped. `shortened` are among the used. `columns` are the first row's,
    `format` is what they were taken for."""

    read: int = 0
    used: int = 0
    shortened: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)  # number of the first row skipped for each reason
    columns: tuple[str, ...] = ()
    format: str = ""

    def skip(self, reason: str, number: int) -> None:
        """Count a row that is not used."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        self.first[reason] = min(number, self.first.get(reason, number))

    def record(self) -> dict[str, Any]:
        """As it stands in sources.json."""
        skipped = {reason: {"count": count, "first": self.first[reason]} for reason, count in self.skipped.items()}
        return {"read": self.read, "used": self.used, "shortened": self.shortened, "skipped": skipped}

    def sentence(self, unit: str) -> str:
        """ "40 rows read, 30 used, 2 of them shortened; skipped: 10 empty response (first: line 7)"."""
        told = f"{self.read} rows read, {self.used} used"
        if self.shortened:
            told += f", {self.shortened} of them shortened"
        reasons = [
            f"{count} {reason}" + ("" if reason == NOT_DRAWN else f" (first: {unit} {self.first[reason]})")
            for reason, count in self.skipped.items()
        ]
        return told + (f"; skipped: {', '.join(reasons)}" if reasons else "")
