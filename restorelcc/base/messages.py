"""What a command says beside its result, on stderr: how much of it, and in which form.

`restorelcc -q`, `-v` and `--log-json` choose it. The choice is in the environment, so that the stages that a command
starts speak as it does.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from typing import Any, Literal, TextIO

LOG = "RESTORELCC_LOG"  # words of: quiet, verbose, json
Level = Literal["info", "warning", "error"]
_QUIETED = ("Token indices sequence length is longer than",)  # texts are cut where they are too long
_TOKENIZERS = "transformers.tokenization_utils_base"  # the logger


def choose(*, verbose: bool = False, quiet: bool = False, as_json: bool = False) -> None:
    """Set how this process and those that it starts speak; what the environment says already stays where nothing is
    asked for."""
    words = [word for word, asked in (("verbose", verbose), ("quiet", quiet), ("json", as_json)) if asked]
    if words:
        os.environ[LOG] = " ".join(words)
    if chosen("quiet") or chosen("json"):
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of other libraries
    if not chosen("verbose"):
        _silence_libraries()


def chosen(word: Literal["quiet", "verbose", "json"]) -> bool:
    """Whether it is how this process speaks."""
    return word in os.environ.get(LOG, "").split()


def say(text: str, level: Level = "info", **fields: Any) -> None:
    """One line on stderr; with `json` an object with time (seconds since 1970), level, message and the fields.

    With `quiet`, errors alone are said.
    """
    if chosen("quiet") and level != "error":
        return
    print(line(text, level, **fields), file=sys.stderr, flush=True)


def say_named(text: str) -> None:
    """`say` with the program's name in front, where the lines of DVC or `make` stand beside it."""
    say(text if chosen("json") else f"restorelcc: {text}")


def note(text: str) -> None:
    """`say` of something that the user may have to act on."""
    say(text if chosen("json") else f"restorelcc: note: {text}", "warning")


def line(text: str, level: Level, **fields: Any) -> str:
    """The line that `say` prints."""
    if not chosen("json"):
        return text
    told = {"time": round(time.time(), 3), "level": level, "message": text, **fields}
    return json.dumps(told, ensure_ascii=False)


def _silence_libraries() -> None:
    """Drop what libraries announce to those who program with them: a user can do nothing about it."""
    if not sys.warnoptions:  # python -W, or PYTHONWARNINGS, which the user has set
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.showwarning = _shown
    logger = logging.getLogger(_TOKENIZERS)
    if _is_wanted not in logger.filters:
        logger.addFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    return chosen("verbose") or not record.getMessage().startswith(_QUIETED)


def _shown(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Other warnings, in one line without the code that gave them."""
    say(f"{category.__name__}: {' '.join(str(message).split())}", "warning")
