"""Which of the choices a multiple-choice row calls right, by the type of what it says."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from restorelcc.base.errors import BadInput
from restorelcc.stages.corpus.values import plain_text, whole_number

_DIGITS = 18  # of a position; what has more names no choice
# Choices that mean true or false themselves.
_TRUTH = {"yes": True, "true": True, "no": False, "false": False}


def right_choice(gold: Any, choices: Sequence[str], labels: Sequence[Any], place: str) -> int | None:
    """Position of the right choice; None when gold names none of them.

    A label goes first. true and false name the choice that means it (yes, no, true, false), or else the second and
    the first of two. A number is a position. A text is the text of a choice, else a position in digits, else a letter.
    Raises BadInput for true or false among more than two choices, and for what is neither number nor text.
    """
    if isinstance(gold, bool | np.bool_):
        return _of_truth(bool(gold), choices, place)
    named = plain_text(gold, place)
    marks = [plain_text(label, f"{place}: a label of the choices") for label in labels]
    number = whole_number(gold)
    if number is not None and str(number) in marks:
        return marks.index(str(number))
    if named in marks:
        return marks.index(named)
    if number is None and named is not None:
        if named in choices:
            return list(choices).index(named)
        number = int(named) if named.isdecimal() and len(named) <= _DIGITS else None
    if number is not None:
        return number if 0 <= number < len(choices) else None
    letters = string.ascii_uppercase[: len(choices)]
    return letters.index(named.upper()) if named and len(named) == 1 and named.upper() in letters else None


def _of_truth(gold: bool, choices: Sequence[str], place: str) -> int:
    if len(choices) != 2:
        raise BadInput(
            f"{place} is {str(gold).lower()}, which names one of two choices, but there are {len(choices)}: give the "
            "position, the letter or the text of the right one"
        )
    means = [_TRUTH.get(choice.lower().rstrip(".")) for choice in choices]
    return means.index(gold) if set(means) == {True, False} else int(gold)
