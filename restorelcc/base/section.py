"""Base class of every typed section of params.yaml, and the sentence for a value that a section refuses."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

MOST = 2**32 - 1  # of any count; numpy takes no larger seed
_LARGEST, _SMALLEST = 1e12, 1e-12  # of any other number, beside 0
_SHOWN = 80  # characters of a value that a message shows
_UNKNOWN, _MISSING = ("extra_forbidden", "unexpected_keyword_argument"), ("missing", "missing_argument")
# pydantic's words where they speak of Python.
_WORDS = {
    "model_type": "keys with values belong here, key: value",
    "model_attributes_type": "keys with values belong here, key: value",
    "dict_type": "keys with values belong here, key: value",
    "tuple_type": "a list in brackets belongs here, [...]",
    "string_type": "text belongs here",
    "bool_type": "write true or false",
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "a whole number belongs here"),
    **dict.fromkeys(("float_parsing", "float_type"), "a number belongs here"),
    "finite_number": "a finite number belongs here",
}
# How pydantic names the forms of a value of several types; they are no part of a key.
_FORM = re.compile(r"(constrained-)?(int|float|str|bool)|.*[\[(].*")
_TELLS = ("belong", "write", "remove", "shorten", "give", "use ", "add ")  # a message that says what to do


def _usable_name(text: str) -> str:
    """A name, a path or a hub id: text that a file system takes."""
    if text != text.strip() or not text.isprintable():
        raise ValueError("a name has no blanks at its ends and no line breaks or tabs; remove them")
    if any(len(part.encode()) > 255 for part in text.split("/")):
        raise ValueError("no name may be longer than 255 bytes; shorten it")
    if text.startswith("~") and not text.startswith("~/") and text != "~":
        raise ValueError("only ~/ stands for a home folder; write the whole path")
    return text


# A path, a hub id, or what else a user names.
Name = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_usable_name)]


def each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """For a validator: the values. Raises ValueError where one of them appears twice."""
    if twice := [value for position, value in enumerate(values) if value in values[:position]]:
        raise ValueError(f"{twice[0]!r} appears twice, remove one")
    return values


class Section(BaseModel):
    """A frozen, keyword-only section; an unknown key, a wrong type or a value out of range is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_it_is_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses what pydantic would turn into another kind of value, and numbers that only a slip can give."""
        kinds = _kinds(cls.model_fields[info.field_name or ""].annotation)
        if kinds & {int, float, bool}:
            for each in _scalars(value):
                if reason := _misread(each, kinds):
                    raise ValueError(reason)
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation is made of."""
    parts = [part for part in get_args(annotation) if part is not annotation]
    return set().union(*map(_kinds, parts)) if parts else {annotation} if isinstance(annotation, type) else set()


def _scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from _scalars(each)
    else:
        yield value


def _misread(value: Any, kinds: set[Any]) -> str | None:
    """Why a scalar is not what it may look like to pydantic, which reads "0.1" as a number and 1 as true."""
    if bool in kinds:
        return None if isinstance(value, bool) or value is None else "write true or false"
    if isinstance(value, bool):
        return "true and false are not numbers; write a number"
    if isinstance(value, str) and str not in kinds and _is_number(value):
        return "text is no number; write it without quotes"
    if isinstance(value, int) and abs(value) > MOST:
        return f"a number of at most {MOST} belongs here"
    if isinstance(value, float) and abs(value) > _LARGEST:
        return "such a large number is of no use here; write a smaller one"
    if isinstance(value, float) and 0 < abs(value) < _SMALLEST:
        return "such a small number is of no use here; write a larger one"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def unknown(where: str, name: object, known: Any, otherwise: str) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(map(repr, known))}; {otherwise}"
    return f"{where} {str(name)[:_SHOWN]!r} is unknown: {hint}"


def _fields_at(model: Any, location: tuple[int | str, ...], tags: Mapping[str, Any]) -> list[str]:
    """Names allowed beside the last part of a location below a section."""
    for part in location[:-1]:
        if isinstance(part, str) and hasattr(model, "model_fields"):
            model = model.model_fields[part].annotation if part in model.model_fields else model
        elif getattr(model, "__origin__", None) is dict:
            model = model.__args__[1]  # the entry by this name
        elif (form := tags.get(str(part))) is not None:
            model = form
    if hasattr(model, "__args__"):  # Section | None
        model = model.__args__[0]
    fields: dict[str, Any] = getattr(model, "model_fields", None) or getattr(model, "__dataclass_fields__", {})
    return list(fields)


def sentence(
    error: ValidationError, within: Any, above: tuple[str, ...] = (), tags: Mapping[str, Any] | None = None
) -> str:
    """One sentence for what is wrong in a section of type `within`, which stands at `above` in params.yaml: the first
    error in words, and the keys of the others. An unknown key goes before a missing one, which it may be a slip of.

    tags: by which pydantic tells the forms of a value apart, with their classes; they are no part of a key.
    """
    tags = tags or {}
    found: dict[str, str] = {}
    meant: set[str] = set()
    for each in sorted(error.errors(), key=lambda one: (one["type"] in _MISSING) - (one["type"] in _UNKNOWN)):
        location = (*above, *each["loc"])
        parts = (str(part) for part in location if part not in tags)
        key = ".".join(part[:_SHOWN] for part in parts if not _FORM.fullmatch(part))
        if each["type"] in _UNKNOWN:
            found[key], near = _unknown_key(key, str(location[-1]), _fields_at(within, each["loc"], tags))
            meant.add(near)
        elif key not in meant:
            found.setdefault(key, _wrong_value(key, each))
    # Of a value of several types, what is wrong inside one of them tells more than that it is none of the others.
    first, *others = [key for key in found if not any(other.startswith(f"{key}.") for other in found)]
    if not others:
        return found[first]
    more = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
    return f"{found[first]} ({len(others)} more to correct: {more})"


def _unknown_key(key: str, name: str, known: list[str]) -> tuple[str, str]:
    """The sentence, and the key that is meant, where one is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not near:
        return f"params.yaml: key {key!r} is unknown: remove it, or use one of {', '.join(known)}", ""
    meant = ".".join(filter(None, (key.removesuffix(name[:_SHOWN]).removesuffix("."), near[0])))
    return f"params.yaml: key {key!r} is unknown: did you mean {meant!r}?", meant


def _wrong_value(key: str, error: Any) -> str:
    if error["type"] in _MISSING:
        return f"params.yaml: key {key!r} is missing: add it (the shipped params.yaml shows how)"
    message = _WORDS.get(error["type"], error["msg"]).removeprefix("Value error, ").rstrip(".")
    given = "null" if error["input"] is None else repr(error["input"])
    if isinstance(error["input"], dict | BaseModel):
        given = "a section"
    elif len(given) > _SHOWN:
        given = f"{given[:_SHOWN]}..."
    do = "" if any(word in message for word in _TELLS) else "; correct the value"
    return f"params.yaml: {key} is {given}: {message[0].lower()}{message[1:]}{do}"
