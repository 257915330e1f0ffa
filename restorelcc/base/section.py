"""Base class of every typed section of params.yaml, and the sentence for a value that a section refuses."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator


class Section(BaseModel):
    """A frozen, keyword-only section; an unknown key, a wrong type or a value out of range is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic reads true and false as 1 and 0 where a number is wanted."""
        kinds = _kinds(cls.model_fields[info.field_name or ""].annotation)
        if kinds & {int, float} and bool not in kinds and _holds_truth(value):
            raise ValueError("true and false are not numbers; write a number")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation is made of."""
    parts = [part for part in get_args(annotation) if part is not annotation]
    return set().union(*map(_kinds, parts)) if parts else {annotation} if isinstance(annotation, type) else set()


def _holds_truth(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return any(map(_holds_truth, value)) if isinstance(value, list | tuple) else isinstance(value, bool)


def unknown(where: str, name: object, known: Any, otherwise: str) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(map(repr, known))}; {otherwise}"
    return f"{where} {name!r} is unknown: {hint}"


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
    """One sentence for the first error in a section of type `within`, which stands at `above` in params.yaml.

    tags: by which pydantic tells the forms of a value apart, with their classes; they are no part of a key.
    """
    tags = tags or {}
    first = error.errors()[0]
    location = (*above, *first["loc"])
    key = ".".join(str(part) for part in location if part not in tags)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        where = f"params.yaml: key {key!r} is unknown"
        known = _fields_at(within, first["loc"], tags)
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        parent = key.rpartition(".")[0]
        return (
            f"{where}: did you mean {'.'.join(filter(None, (parent, near[0])))!r}?"
            if near
            else (f"{where}: remove it, or use one of {', '.join(known)}")
        )
    if first["type"] in ("missing", "missing_argument"):
        return f"params.yaml: key {key!r} is missing: add it (the shipped params.yaml shows how)"
    message = first["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list in brackets, [...]")
    given = first["input"] if not isinstance(first["input"], dict | BaseModel) else "the section"
    return f"params.yaml: {key} is {given!r}: {message[0].lower()}{message[1:].rstrip('.')}; correct the value"
