"""Rows of a user's data by number, and what became of them: every one is used, or skipped for a counted reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """One of several files: the number before its first row, its name, and what its own numbers count."""

    before: int
    name: str
    unit: str


@dataclass(frozen=True)
class Rows:
    """Numbered rows, read once. `unit`: what the numbers count, lines of a file of text or else rows.

    `parts`: of several files those that were begun; the numbers go on from one to the next.
    """

    name: str  # of the file or dataset, as a message has it
    numbered: Iterable[tuple[int, Row]]
    unit: str = "row"
    origin: dict[str, Any] = field(default_factory=dict)  # what is recorded of it: source, revision or sha256
    parts: list[Part] = field(default_factory=list)

    def place(self, number: int) -> str:
        """ "line 17 of pairs.jsonl"."""
        part = self._part(number)
        return f"{part.unit} {number - part.before} of {part.name}"

    def short_place(self, number: int) -> str:
        """ "line 17", or of several files "line 17 of pairs-2.jsonl"."""
        part = self._part(number)
        of_which = f" of {Path(part.name).name}" if self.parts else ""
        return f"{part.unit} {number - part.before}{of_which}"

    def _part(self, number: int) -> Part:
        return next((part for part in reversed(self.parts) if part.before < number), Part(0, self.name, self.unit))


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

    def sentence(self, rows: Rows) -> str:
        """ "40 rows read, 30 used, 2 of them shortened; skipped: 10 empty response (first: line 7)"."""
        told = f"{self.read} rows read, {self.used} used"
        if self.shortened:
            told += f", {self.shortened} of them shortened"
        reasons = [
            f"{count} {reason}" + ("" if reason == NOT_DRAWN else f" (first: {rows.short_place(self.first[reason])})")
            for reason, count in self.skipped.items()
        ]
        return told + (f"; skipped: {', '.join(reasons)}" if reasons else "")
