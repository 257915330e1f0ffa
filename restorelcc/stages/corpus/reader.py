"""One row of a user's data, its values by what they mean, whatever their columns are called."""

from __future__ import annotations

from typing import Any

from restorelcc.base.errors import BadInput
from restorelcc.base.model_entry import DataFiles
from restorelcc.stages.corpus.account import Row, Rows
from restorelcc.stages.corpus.values import plain_text, whole_characters

# What datasets call the same thing; `columns` in params.yaml goes before these.
_NAMES: dict[str, tuple[str, ...]] = {
    "question": ("question", "query", "prompt"),
    "response": ("response", "completion", "answer"),
    "instruction": ("instruction",),
    "input": ("input",),
    "output": ("output",),
    "messages": ("messages", "conversations", "conversation"),
    "choices": ("choices", "options"),
    "gold": ("gold", "label", "answerKey", "answer"),
    "text": ("text",),
    "task": ("task",),
}


class Skipped(Exception):
    """Why a row is not used."""


class Reader:
    """A row's values by what they mean."""

    def __init__(self, row: Row, data: DataFiles, number: int, rows: Rows) -> None:
        self.row, self.data, self.number, self.place = row, data, number, rows.place(number)

    def column(self, role: str) -> str | None:
        """The row's own name for a role."""
        own = self.data.columns.get(role)
        return next((name for name in ((own,) if own else _NAMES[role]) if name in self.row), None)

    def has(self, role: str) -> bool:
        return self.column(role) is not None

    def value(self, role: str) -> Any:
        name = self.column(role)
        if name is None:
            columns = self.data.columns
            raise BadInput(
                f"{self.place} is a row without the column `{columns.get(role, role)}`, but "
                f"{', '.join(map(repr, self.row)) or 'nothing'}: correct the row, or models.<name>.data.columns"
            )
        return self.row[name]

    def text(self, role: str) -> str:
        """The value as text. Raises Skipped where there is none, BadInput where it is none."""
        found = plain_text(self.value(role), f"{self.place}: column {self.column(role)!r}")
        if not found:
            raise Skipped(f"{'null' if found is None else 'empty'} {role}")
        return found

    def optional(self, role: str) -> str:
        """The value as text, empty where there is none."""
        return self.part(self.value(role), role)

    def task(self, default: str, *, needed: bool) -> str:
        """The name of the row's task. The default where the data have no such column, or the row nothing in it; a
        column `task` that `columns` does not map may hold anything, and counts only where it is a text.

        Raises BadInput where `columns` maps a column that is not there, if it is needed."""
        if "task" in self.data.columns:
            return (self.optional("task") if needed or self.has("task") else "") or default
        named = self.has("task") and isinstance(self.value("task"), str)
        return (self.optional("task") if named else "") or default

    def part(self, value: Any, role: str) -> str:
        """A value of a role, or an item of it, as text; empty where there is none."""
        return plain_text(value, f"{self.place}: column {self.column(role)!r}") or ""

    def whole(self, text: str, role: str) -> str:
        """A text of a role as it stands, blanks included."""
        return whole_characters(text, f"{self.place}: column {self.column(role)!r}")

    def wrong(self, what: str) -> BadInput:
        return BadInput(f"{self.place} is a row {what}: correct the row")
