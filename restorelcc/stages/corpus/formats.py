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
from restorelcc.stages.corpus.reader import Reader, Skipped
from restorelcc.stages.corpus.values import is_missing, normal, whole_characters

Message = dict[str, str]
# Columns that tell a format, the most particular first.
_NEEDS = {
    "chat": ("messages",),
    "choice": ("question", "choices", "gold"),
    "alpaca": ("instruction", "output"),
    "pairs": ("question", "response"),
    "text": ("text",),
}
# The same where only questions are asked for, which the model answers itself.
_ASKS = {"chat": ("messages",), "alpaca": ("instruction",), "pairs": ("question",), "text": ("text",)}
_SPEAKERS = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_ROLES = ("system", "developer", "user", "assistant", "tool")
_SHOWN = 80  # characters of a value that a message shows
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*\s+")


@dataclass(frozen=True)
class Example:
    """A question with its right response. `task`: as the data name it, or else a name for the format; `messages`: the
    conversation the question ends, where the data are chats; `wrong`: the other choices, where the data are multiple
    choice; `row`: the number of the row it comes from."""

    task: str
    question: str
    response: str
    messages: tuple[Message, ...] = ()
    wrong: tuple[str, ...] = field(default=())
    row: int = field(default=0, compare=False)


def examples(rows: Rows, data: DataFiles, account: Account) -> Iterator[Example]:
    """The usable examples of rows, in order; one of every question, whatever its case and spaces.

    Raises BadInput for rows of no known format.
    """
    return _each_once(rows, data, account, data.format, lambda reader, kind: _ADAPTERS[kind](reader))


def prompts(rows: Rows, data: DataFiles, account: Account) -> Iterator[Example]:
    """The questions of rows without their responses, in order and each once; a text is a question as it stands."""
    return _each_once(rows, data, account, "prompts", _prompt)


def _each_once(
    rows: Rows, data: DataFiles, account: Account, wanted: str, read: Callable[[Reader, str], Example]
) -> Iterator[Example]:
    seen: set[str] = set()
    for reader, kind in _readers(rows, data, account, wanted):
        try:
            found = _unmarked(read(reader, kind))
            found = replace(found, task=reader.task(found.task, needed=wanted != "prompts"))
        except Skipped as skipped:
            account.skip(str(skipped), reader.number)
            continue
        if normal(found.question) in seen:
            account.skip("duplicate question", reader.number)
        else:
            seen.add(normal(found.question))
            yield found


def _unmarked(example: Example) -> Example:
    """The example without the mark of a rendered question, which a question of the user's own may not begin with."""
    if not example.question.startswith(RENDERED):
        return example
    question = example.question.lstrip(RENDERED + string.whitespace)
    if not question:
        raise Skipped("empty question")
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
        except Skipped as skipped:
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


def format_of(row: Row, data: DataFiles, name: str, wanted: str = "auto") -> str:
    """Which format a row's columns tell. Raises BadInput for those of none; `name`: of the file or dataset.

    wanted: auto; text-first, where a column `text` goes before the others; or prompts, which need no response.
    """
    reader = Reader(row, data, 0, Rows(name, ()))
    needs = _ASKS if wanted == "prompts" else _NEEDS
    for kind in ("text", *needs) if wanted == "text-first" else tuple(needs):
        if all(reader.has(role) for role in needs[kind]):
            return kind
    raise BadInput(
        f"{name} has the columns {', '.join(map(repr, row)) or 'none'}, of which no format is known: it needs "
        "`instruction` and `output`, or `question` and `response`, or `messages`, or `question`, `choices` and `gold`, "
        "or a column `text`; name yours in models.<name>.data.columns"
    )


def _readers(rows: Rows, data: DataFiles, account: Account, kind: str) -> Iterator[tuple[Reader, str]]:
    """Every row with the format that the first one tells, counted as read."""
    for number, row in rows.numbered:
        account.read += 1
        if kind in ("auto", "text-first", "prompts"):
            kind = format_of(row, data, rows.name, kind)
        if not account.columns:
            for name in row:
                whole_characters(str(name), f"{rows.place(number)}: the name {str(name)!r} of a column")
            account.columns, account.format = tuple(map(str, row)), kind
        yield Reader(row, data, number, rows), kind


def _prompt(row: Reader, kind: str) -> Example:
    """The question alone; of a conversation everything up to the user's last word."""
    if kind == "alpaca":
        return Example("instructions", _instruction(row), "", row=row.number)
    if kind != "chat":
        return Example("text" if kind == "text" else "instructions", row.text(_ASKS[kind][0]), "", row=row.number)
    messages = _messages(row)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    question = "\n".join(message["content"] for message in messages).strip()
    if not question:
        raise Skipped("empty question")
    return Example("chat", question, "", tuple(messages), row=row.number)


def _alpaca(row: Reader) -> Example:
    return Example("instructions", _instruction(row), row.text("output"), row=row.number)


def _instruction(row: Reader) -> str:
    values = {"instruction": row.text("instruction"), "input": row.optional("input") if row.has("input") else ""}
    question = row.data.template.format(**values).strip()
    if not question:
        raise Skipped("empty question")
    return question


def _pairs(row: Reader) -> Example:
    return Example("instructions", row.text("question"), row.text("response"), row=row.number)


def _text(row: Reader) -> Example:
    """The sentences up to the middle of a text are the question, the rest is the response."""
    text = " ".join(row.text("text").split())
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    if not ends:
        raise Skipped("no sentence end within the text")
    middle = min(ends, key=lambda end: abs(end - len(text) / 2))
    return Example("text", text[:middle].strip(), text[middle:].strip(), row=row.number)


def _chat(row: Reader) -> Example:
    """The last answer of a conversation is the response, everything before it the question."""
    messages = _messages(row)
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise Skipped("no assistant answer")
    before, answer = messages[: answers[-1]], messages[answers[-1]]["content"].strip()
    question = "\n".join(message["content"] for message in before).strip()
    if not question or not answer:
        raise Skipped("empty question" if answer else "empty response")
    return Example("chat", question, answer, tuple(before), row=row.number)


def _messages(row: Reader) -> list[Message]:
    spoken = row.value("messages")
    if is_missing(spoken):
        raise Skipped("null messages")
    if not isinstance(spoken, list) or not all(isinstance(message, Mapping) for message in spoken):
        raise row.wrong("whose messages are not a list of {role, content}")
    return [_message(row, message) for message in spoken]


def _message(row: Reader, message: Row) -> Message:
    """A message by the names that chat templates know. A conversation with a speaker that they do not is not used."""
    if message.get("tool_calls") or message.get("function_call"):  # a call is no text that could be trained on
        raise Skipped("tool call")
    # In a Parquet file every message has all keys, and null under those that are not its own.
    role, content = (
        next((message[name] for name in names if message.get(name) is not None), None)
        for names in (("role", "from"), ("content", "value"))
    )
    if not {"content", "value"} & message.keys() or not isinstance(role, str):
        raise row.wrong(f"with the message {str(dict(message))[:80]}, which lacks role or content")
    known = _SPEAKERS.get(role.lower(), role.lower())
    if known not in _ROLES:
        raise Skipped(f"unknown role {role[:20]!r}")
    if is_missing(content):
        raise Skipped("null message")
    spoken = row.whole(content, "messages") if isinstance(content, str) else row.part(content, "messages")
    return {"role": known, "content": spoken}


def _choice(row: Reader) -> Example:
    """The right choice is the response; gold is its position, its letter, its label or its text."""
    given, gold = row.value("choices"), row.value("gold")
    labels: list[Any] = []
    if is_missing(given):
        raise Skipped("null choices")
    if isinstance(given, Mapping):  # {"text": [...], "label": [...]}, as ARC has it
        labels, given = _labels(row, given), given.get("text", ())
    if not isinstance(given, list | tuple) or len(given) < 2:
        raise row.wrong(f"whose choices are {str(given)[:80]!r}, no list of at least two texts")
    if labels and len(labels) != len(given):
        raise row.wrong(f"with {len(labels)} labels for its {len(given)} choices")
    question = row.text("question")
    choices = [row.part(choice, "choices") for choice in given]
    if is_missing(gold) or (isinstance(gold, str) and not gold.strip()):
        raise Skipped("empty gold" if isinstance(gold, str) else "null gold")
    right = right_choice(gold, choices, labels, f"{row.place}: column {row.column('gold')!r}")
    if right is None:
        raise row.wrong(f"whose gold {_cut(repr(gold))} names none of its {len(choices)} choices")
    if not choices[right]:
        raise Skipped("empty response")
    wrong = tuple(choice for number, choice in enumerate(choices) if number != right and choice)
    return Example("choice", question, choices[right], wrong=wrong, row=row.number)


def _labels(row: Reader, choices: Mapping[str, Any]) -> list[Any]:
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


_ADAPTERS: dict[str, Callable[[Reader], Example]] = {
    "alpaca": _alpaca,
    "pairs": _pairs,
    "text": _text,
    "chat": _chat,
    "choice": _choice,
}
