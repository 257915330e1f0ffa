"""The text of params.yaml as plain values: what DVC reads there, or one sentence on why it cannot be used.

DVC fills dvc.yaml in from the file by a parser of its own, ruamel.yaml, which follows YAML 1.2. Most other programs
follow YAML 1.1, where 010 is eight and `yes` is true. Here DVC's parser decides, and a value that the two versions of
YAML read in different ways is refused.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError

from restorelcc.base.errors import BadInput

_MOST_BYTES = 2**20  # of the file
_MOST_VALUES = 100_000  # an alias may stand for a value again and again
_DEEPEST = 20
_SHOWN = 60  # characters of a value that a message shows
_SCALARS = (bool, int, float, str)


def read_params(path: Path) -> dict[str, Any]:
    """The content of params.yaml. Raises BadInput for a file that cannot be read, or does not hold sections."""
    raw = _parsed(str(path), _text(path))
    if not isinstance(raw, dict):
        kind = "nothing" if raw is None else type(raw).__name__
        raise BadInput(f"{path} must hold the sections grid, models and one per stage; it holds {kind}")
    return raw


def read_value(override: str, text: str) -> Any:
    """The value of `--set section.key=value`. Raises BadInput for one that is not YAML."""
    return _parsed(f"the value of --set {override!r}", text)


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            if path.exists():
                raise BadInput(f"{path} is no file: give the parameter file itself, --params FILE")
            raise BadInput(f"{path} does not exist: run in the project's folder or give --params FILE")
        if path.stat().st_size > _MOST_BYTES:
            raise BadInput(f"{path} is larger than 1 MiB, so that it is no parameter file: give another, --params FILE")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise BadInput(f"{path} is not UTF-8 (line {line}): save it in that encoding") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"{str(path)[:_SHOWN]!r} cannot be read ({reason}): correct the path or its rights") from error


def _parsed(where: str, text: str) -> Any:
    try:
        # libyaml descends without end into brackets within brackets: Python's parser, which counts, goes first.
        other, value = yaml.safe_load(text), YAML(typ="safe").load(text)
    except DuplicateKeyError as error:
        raise BadInput(_twice(where, error)) from error
    except RecursionError as error:
        raise BadInput(f"{where} is nested too deeply: take brackets away") from error
    except Exception as error:  # YAML errors of two libraries, and whatever their dates and numbers are refused with
        raise BadInput(f"{where} is not valid YAML ({_reason(error)}): correct it") from error
    _check(where, value, other, (), [0])
    return value


def _twice(where: str, error: DuplicateKeyError) -> str:
    line = getattr(error.problem_mark, "line", 0) + 1
    words = str(error.problem).split('"')
    key = f" {words[1]!r}" if len(words) > 2 else ""
    return f"{where}, line {line}: the key{key} appears a second time: remove one of the two"


def _reason(error: Exception) -> str:
    """What a parser says, without the advice that one of them gives to programmers."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).partition("\n\n")[0]
    said = " ".join(str(problem).split()).replace('"<unicode string>", ', "")[:200]
    return said if mark is None else f"line {mark.line + 1}: {said}"


def _check(where: str, value: Any, other: Any, key: tuple[str, ...], seen: list[int]) -> None:
    """That a value is made of mappings, lists and plain scalars which `other`, YAML 1.1's reading, agrees with."""
    seen[0] += 1
    place = f"{where}: {'.'.join(key)[:200]}" if key else where
    if seen[0] > _MOST_VALUES or len(key) > _DEEPEST:
        raise BadInput(f"{place[:200]} holds too many values, or values nested too deeply: write it without aliases")
    if isinstance(value, dict) and isinstance(other, dict) and len(value) == len(other):
        for (name, each), (_, same) in zip(value.items(), other.items(), strict=True):
            if not isinstance(name, str):
                raise BadInput(f"{place} has the key {_shown(name)}, which is not text: put it in quotes")
            _check_text(f"{place} has a key", name)
            _check(where, each, same, (*key, name), seen)
    elif isinstance(value, list) and isinstance(other, list) and len(value) == len(other):
        for number, (each, same) in enumerate(zip(value, other, strict=True)):
            _check(where, each, same, (*key, str(number)), seen)
    elif value is not None and not isinstance(value, _SCALARS):
        raise BadInput(f"{place} is a {type(value).__name__}: write text, a number, true, false, null, a list or keys")
    elif isinstance(value, str) and value == other:
        _check_text(f"{place} is a text", value)
    # 1e-3 is a number in YAML 1.2 and text in 1.1, and nobody means the text.
    elif (type(value), repr(value)) != (type(other), repr(other)) and not isinstance(value, float):
        raise BadInput(
            f"{place} is {_shown(value)} in YAML 1.2, which DVC reads, and {_shown(other)} in YAML 1.1: write a number "
            "without leading zeros or colons, true or false, or put a text in quotes"
        )


def _check_text(what: str, text: str) -> None:
    """Raises BadInput for characters that are none: they break tables, file names and other programs' files."""
    bad = next((each for each in text if unicodedata.category(each) in ("Cc", "Cs") and each not in "\n\t"), None)
    if bad is not None:
        raise BadInput(f"{what} with the control character U+{ord(bad):04X}: remove the character")


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
