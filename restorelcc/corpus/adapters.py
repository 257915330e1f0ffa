"""Rows of instruction data, whatever their shape, as questions with a right response (and wrong ones, where given)."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from restorelcc.core.errors import BadInput
from restorelcc.core.model_entry import DataFiles

Row = Mapping[str, Any]
Message = dict[str, str]
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
}
# Columns that tell a format, the most particular first.
_NEEDS = {
    "chat": ("messages",),
    "choice": ("question", "choices", "gold"),
    "alpaca": ("instruction", "output"),
    "pairs": ("question", "response"),
    "text": ("text",),
}
_SPEAKERS = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*\s+")


@dataclass(frozen=True)
class Example:
    """A question with its right response. `messages`: the conversation the question ends, where the data are chats;
    `wrong`: the other choices, where the data are multiple choice."""

    task: str
    question: str
    response: str
    messages: tuple[Message, ...] = ()
    wrong: tuple[str, ...] = field(default=())


def examples(rows: Iterable[Row], data: DataFiles, where: str) -> Iterator[Example]:
    """The usable examples of rows, in order; one of every question. Raises BadInput for rows of no known format."""
    seen: set[str] = set()
    kind: str = data.format
    for row in rows:
        if kind == "auto":
            kind = _format_of(row, data, where)
        found = _ADAPTERS[kind](_Reader(row, data, where))
        if found is not None and found.question not in seen:
            seen.add(found.question)
            yield found


class _Reader:
    """A row's values by what they mean."""

    def __init__(self, row: Row, data: DataFiles, where: str) -> None:
        self.row, self.data, self._where = row, data, where

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
                f"{self._where} has a row without the column `{columns.get(role, role)}`, but "
                f"{', '.join(map(repr, self.row)) or 'nothing'}: correct the row, or models.<name>.data.columns"
            )
        return self.row[name]

    def text(self, role: str) -> str:
        return str(self.value(role) or "").strip()

    def wrong(self, what: str) -> BadInput:
        return BadInput(f"{self._where} has a row {what}: correct the row")


def _format_of(row: Row, data: DataFiles, where: str) -> str:
    reader = _Reader(row, data, where)
    for kind, roles in _NEEDS.items():
        if all(reader.has(role) for role in roles):
            return kind
    raise BadInput(
        f"{where} has the columns {', '.join(map(repr, row)) or 'none'}, of which no format is known: it needs "
        "`instruction` and `output`, or `question` and `response`, or `messages`, or `question`, `choices` and `gold`, "
        "or `text`; name yours in models.<name>.data.columns"
    )


def _alpaca(row: _Reader) -> Example | None:
    values = {"instruction": row.text("instruction"), "input": row.text("input") if row.has("input") else ""}
    return _pair("instructions", row.data.template.format(**values).strip(), row.text("output"))


def _pairs(row: _Reader) -> Example | None:
    return _pair("instructions", row.text("question"), row.text("response"))


def _text(row: _Reader) -> Example | None:
    """The sentences up to the middle of a text are the question, the rest is the response."""
    text = " ".join(row.text("text").split())
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    if not ends:
        return None
    middle = min(ends, key=lambda end: abs(end - len(text) / 2))
    return _pair("text", text[:middle].strip(), text[middle:].strip())


def _chat(row: _Reader) -> Example | None:
    """The last answer of a conversation is the response, everything before it the question."""
    spoken = row.value("messages")
    if not isinstance(spoken, list) or not all(isinstance(message, Mapping) for message in spoken):
        raise row.wrong("whose messages are not a list of {role, content}")
    messages = [_message(row, message) for message in spoken]
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers or answers[-1] == 0:
        return None
    before, answer = messages[: answers[-1]], messages[answers[-1]]
    question = "\n".join(message["content"] for message in before)
    found = _pair("chat", question.strip(), answer["content"].strip())
    return found and Example(found.task, found.question, found.response, tuple(before))


def _message(row: _Reader, message: Row) -> Message:
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise row.wrong(f"with the message {str(dict(message))[:80]}, which lacks role or content")
    return {"role": _SPEAKERS.get(role, role), "content": content}


def _choice(row: _Reader) -> Example | None:
    """The right choice is the response; gold is its position, its letter or its label."""
    given = row.value("choices")
    labels: list[str] = []
    if isinstance(given, Mapping):  # {"text": [...], "label": [...]}, as ARC has it
        labels, given = [str(label) for label in given.get("label", ())], given.get("text", ())
    if not isinstance(given, list | tuple) or len(given) < 2:
        raise row.wrong(f"whose choices are {given!r}, no list of at least two texts")
    choices = [str(choice).strip() for choice in given]
    gold = _gold(str(row.value("gold")).strip(), choices, labels)
    if gold is None:
        raise row.wrong(f"whose gold {row.value('gold')!r} names none of its {len(choices)} choices")
    found = _pair("choice", row.text("question"), choices[gold])
    others = tuple(choice for number, choice in enumerate(choices) if number != gold and choice)
    return found and Example(found.task, found.question, found.response, wrong=others)


def _gold(gold: str, choices: list[str], labels: list[str]) -> int | None:
    if gold in labels:
        return labels.index(gold)
    if gold.isdecimal():
        return int(gold) if int(gold) < len(choices) else None
    if gold in choices:
        return choices.index(gold)
    letters = string.ascii_uppercase[: len(choices)]
    return letters.index(gold.upper()) if len(gold) == 1 and gold.upper() in letters else None


def _pair(task: str, question: str, response: str) -> Example | None:
    return Example(task, question, response) if question and response else None


_ADAPTERS: dict[str, Callable[[_Reader], Example | None]] = {
    "alpaca": _alpaca,
    "pairs": _pairs,
    "text": _text,
    "chat": _chat,
    "choice": _choice,
}
