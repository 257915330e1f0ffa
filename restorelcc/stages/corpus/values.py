"""A value of a user's table as text, by its type: the one place that says what becomes of true, 0, null or a list.

Text is stripped. true and false are the answers `yes` and `no`. Whole numbers are their digits, others the shortest
decimal that stands for them (0.1, 1.0). null and NaN are missing. Anything else is refused.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np

from restorelcc.base.errors import BadInput

YES, NO = "yes", "no"
_KINDS: dict[type, tuple[str, str]] = {
    list: ("a list", "join its items to one text"),
    tuple: ("a list", "join its items to one text"),
    np.ndarray: ("a list", "join its items to one text"),
    dict: ("an object", "put the text that it holds into a column of its own"),
    bytes: ("bytes", "decode them to text"),
}


def plain_text(value: Any, place: str) -> str | None:
    """The value as text; None where it is missing. Raises BadInput that begins with `place` where it is no text."""
    if value is None or isinstance(value, str):
        return value if value is None else whole_characters(value, place).strip()
    if isinstance(value, bool | np.bool_):
        return YES if value else NO
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating | Decimal):
        if math.isfinite(value):
            return f"{value:f}" if isinstance(value, Decimal) else str(value)
        if math.isnan(value):
            return None
        raise BadInput(f"{place} is an infinite number, where a text is wanted: correct the row")
    kind, mend = _KINDS.get(type(value), (f"a value of type {type(value).__name__}", "write it as text"))
    raise BadInput(f"{place} is {kind}, where a text is wanted: {mend}")


def whole_characters(text: str, place: str) -> str:
    """The text itself. Raises BadInput that begins with `place` for half of a character (a lone surrogate), which JSON
    can hold and no file of text can."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])[1:-1]
        raise BadInput(f"{place} holds {half}, half of a character: write the whole one, or remove it") from error
    return text


def normal(text: str) -> str:
    """The text in lower case with single spaces: what makes two questions or two responses the same."""
    return " ".join(text.lower().split())


def is_missing(value: Any) -> bool:
    """Whether a value is null or NaN."""
    return value is None or (isinstance(value, float | np.floating | Decimal) and math.isnan(value))


def whole_number(value: Any) -> int | None:
    """The integer that a number stands for (1.0, as a column with gaps has it, is 1); None for what is no number."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float | np.floating | Decimal) and math.isfinite(value) and value == int(value):
        return int(value)
    return None
