"""Rows of a user's data, whatever their shape, as questions with a right response (and wrong ones, where given), or as
plain texts. A row that cannot be used is counted with its reason; a row that is wrong is refused by its number."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from restorelcc.base.errors import BadInput
from restorelcc.base.model_entry import DataFiles
from restorelcc.models.response_mask import RENDERED
from restorelcc.stages.corpus.account import Account, Row, Rows
from restorelcc.stages.corpus.gold import right_choice
from restorelcc.stages.corpus.values import is_missing, plain_text, whole_characters

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
_ROLES = ("system", "developer", "user", "assistant", "tool")
_SHOWN = 80  # characters of a value that a message shows
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*\s+")


@dataclass(frozen=True)
class Example:
    """A question with its right response. `messages`: the conversation the question ends, where the data are chats;
    `wrong`: the other choices, where the data are multiple choice; `row`: the number of the row it comes from."""

    task: str
    question: str
    response: str
    messages: tuple[Message, ...] = ()
    wrong: tuple[str, ...] = field(default=())
    row: int = field(default=0, compare=False)


def examples(rows: Rows, data: DataFiles, account: Account) -> Iterator[Example]:
    """The usable examples of rows, in order; one of every question. Raises BadInput for rows of no known format."""
    seen: set[str] = set()
    for reader, kind in _readers(rows, data, account, data.format):
        try:
            found = _unmarked(_ADAPTERS[kind](reader))
        except _Skipped as skipped:
            account.skip(str(skipped), reader.number)
            continue
        if found.question in seen:
            account.skip("duplicate question", reader.number)
        else:
            seen.add(found.question)
            yield found


def _unmarked(example: Example) -> Example:
    """The example without the mark of a rendered question, which a question of the user's own may not begin with."""
    if not example.question.startswith(RENDERED):
        return example
    question = example.question.lstrip(RENDERED + string.whitespace)
    if not question:
        raise _Skipped("empty question")
    return replace(example, question=question)


def texts(rows: Rows, data: DataFiles, account: Account) -> Iterator[tuple[int, str]]:
    """(row number, text) of rows: the column `text` as it stands, or question and response of any other format."""
    for reader, kind in _readers(rows, data, account, "text-first"):
        try:
            if kind == "text":
                yield reader.number, reader.text("text")
            else:
                found = _ADAPTERS[kind](reader)
                yield reader.number, f"{found.question}\n{found.response}"
        except _Skipped as skipped:
            account.skip(str(skipped), reader.number)


def raw_texts(rows: Rows, data: DataFiles, account: Account) -> Iterator[tuple[int, str]]:
    """(row number, text) of the column `text`, blanks and empty lines included."""
    for reader, _ in _readers(rows, data, account, "text"):
        value = reader.value("text")
        if isinstance(value, str):
            yield reader.number, reader.whole(value, "text")
        elif is_missing(value):
            account.skip("null text", reader.number)
        else:
            yield reader.number, reader.text("text")


def format_of(row: Row, data: DataFiles, name: str, *, text_first: bool = False) -> str:
    """Which format a row's columns tell. Raises BadInput for those of none; `name`: of the file or dataset."""
    reader = _Reader(row, data, 0, Rows(name, ()))
    kinds = ("text", *_NEEDS) if text_first else tuple(_NEEDS)
    for kind in kinds:
        if all(reader.has(role) for role in _NEEDS[kind]):
            return kind
    raise BadInput(
        f"{name} has the columns {', '.join(map(repr, row)) or 'none'}, of which no format is known: it needs "
        "`instruction` and `output`, or `question` and `response`, or `messages`, or `question`, `choices` and `gold`, "
        "or a column `text`; name yours in models.<name>.data.columns"
    )


def _readers(rows: Rows, data: DataFiles, account: Account, kind: str) -> Iterator[tuple[_Reader, str]]:
    """Every row with the format that the first one tells, counted as read."""
    for number, row in rows.numbered:
        account.read += 1
        if kind in ("auto", "text-first"):
            kind = format_of(row, data, rows.name, text_first=kind == "text-first")
        if not account.columns:
            for name in row:
                whole_characters(str(name), f"{rows.place(number)}: the name {str(name)!r} of a column")
            account.columns, account.format = tuple(map(str, row)), kind
        yield _Reader(row, data, number, rows), kind


class _Skipped(Exception):
    """Why a row is not used."""


class _Reader:
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
        """The value as text. Raises _Skipped where there is none, BadInput where it is none."""
        found = plain_text(self.value(role), f"{self.place}: column {self.column(role)!r}")
        if not found:
            raise _Skipped(f"{'null' if found is None else 'empty'} {role}")
        return found

    def optional(self, role: str) -> str:
        """The value as text, empty where there is none."""
        return self.part(self.value(role), role)

    def part(self, value: Any, role: str) -> str:
        """A value of a role, or an item of it, as text; empty where there is none."""
        return plain_text(value, f"{self.place}: column {self.column(role)!r}") or ""

    def whole(self, text: str, role: str) -> str:
        """A text of a role as it stands, blanks included."""
        return whole_characters(text, f"{self.place}: column {self.column(role)!r}")

    def wrong(self, what: str) -> BadInput:
        return BadInput(f"{self.place} is a row {what}: correct the row")


def _alpaca(row: _Reader) -> Example:
    values = {"instruction": row.text("instruction"), "input": row.optional("input") if row.has("input") else ""}
    question = row.data.template.format(**values).strip()
    if not question:
        raise _Skipped("empty question")
    return Example("instructions", question, row.text("output"), row=row.number)


def _pairs(row: _Reader) -> Example:
    return Example("instructions", row.text("question"), row.text("response"), row=row.number)


def _text(row: _Reader) -> Example:
    """The sentences up to the middle of a text are the question, the rest is the response."""
    text = " ".join(row.text("text").split())
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    if not ends:
        raise _Skipped("no sentence end within the text")
    middle = min(ends, key=lambda end: abs(end - len(text) / 2))
    return Example("text", text[:middle].strip(), text[middle:].strip(), row=row.number)


def _chat(row: _Reader) -> Example:
    """The last answer of a conversation is the response, everything before it the question."""
    spoken = row.value("messages")
    if is_missing(spoken):
        raise _Skipped("null messages")
    if not isinstance(spoken, list) or not all(isinstance(message, Mapping) for message in spoken):
        raise row.wrong("whose messages are not a list of {role, content}")
    messages = [_message(row, message) for message in spoken]
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise _Skipped("no assistant answer")
    before, answer = messages[: answers[-1]], messages[answers[-1]]["content"].strip()
    question = "\n".join(message["content"] for message in before).strip()
    if not question or not answer:
        raise _Skipped("empty question" if answer else "empty response")
    return Example("chat", question, answer, tuple(before), row=row.number)


def _message(row: _Reader, message: Row) -> Message:
    """A message by the names that chat templates know. A conversation with a speaker that they do not is not used."""
    # In a Parquet file every message has all keys, and null under those that are not its own.
    role, content = (
        next((message[name] for name in names if message.get(name) is not None), None)
        for names in (("role", "from"), ("content", "value"))
    )
    if not {"content", "value"} & message.keys() or not isinstance(role, str):
        raise row.wrong(f"with the message {str(dict(message))[:80]}, which lacks role or content")
    known = _SPEAKERS.get(role.lower(), role.lower())
    if known not in _ROLES:
        raise _Skipped(f"unknown role {role[:20]!r}")
    if is_missing(content):
        raise _Skipped("null message")
    spoken = row.whole(content, "messages") if isinstance(content, str) else row.part(content, "messages")
    return {"role": known, "content": spoken}


def _choice(row: _Reader) -> Example:
    """The right choice is the response; gold is its position, its letter, its label or its text."""
    given, gold = row.value("choices"), row.value("gold")
    labels: list[Any] = []
    if is_missing(given):
        raise _Skipped("null choices")
    if isinstance(given, Mapping):  # {"text": [...], "label": [...]}, as ARC has it
        labels, given = _labels(row, given), given.get("text", ())
    if not isinstance(given, list | tuple) or len(given) < 2:
        raise row.wrong(f"whose choices are {str(given)[:80]!r}, no list of at least two texts")
    if labels and len(labels) != len(given):
        raise row.wrong(f"with {len(labels)} labels for its {len(given)} choices")
    question = row.text("question")
    choices = [row.part(choice, "choices") for choice in given]
    if is_missing(gold) or (isinstance(gold, str) and not gold.strip()):
        raise _Skipped("empty gold" if isinstance(gold, str) else "null gold")
    right = right_choice(gold, choices, labels, f"{row.place}: column {row.column('gold')!r}")
    if right is None:
        raise row.wrong(f"whose gold {_cut(repr(gold))} names none of its {len(choices)} choices")
    if not choices[right]:
        raise _Skipped("empty response")
    wrong = tuple(choice for number, choice in enumerate(choices) if number != right and choice)
    return Example("choice", question, choices[right], wrong=wrong, row=row.number)


def _labels(row: _Reader, choices: Mapping[str, Any]) -> list[Any]:
    """The labels that stand beside the texts of choices; none where there is no such key, or null."""
    labels = choices.get("label")
    if is_missing(labels):
        return []
    if not isinstance(labels, list | tuple) or not labels:
        raise row.wrong(f"whose labels of choices are {_cut(repr(labels))}, no list with one label for each text")
    return list(labels)


def _cut(text: str) -> str:
    """What a message shows of a value."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


_ADAPTERS: dict[str, Callable[[_Reader], Example]] = {
    "alpaca": _alpaca,
    "pairs": _pairs,
    "text": _text,
    "chat": _chat,
    "choice": _choice,
}
