"""How a command ends that an error has reached: one sentence on stderr, an exit code, and no traceback on the screen.

A fault of the program itself is one sentence too, which says where its traceback lies; RESTORELCC_TRACEBACK=1 has it
printed instead.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
from pathlib import Path

from restorelcc.base.errors import ending, first_line
from restorelcc.base.layout import work_around
from restorelcc.base.messages import chosen, say

SHOW = "RESTORELCC_TRACEBACK"


def tell(error: BaseException, interrupted: str | None = None) -> int:
    """Say how a command ends, and return its exit code: 1 failed, 2 bad input, 130 interrupted, 143 terminated.

    interrupted: what is said instead of the usual where somebody stopped the command.
    """
    sentence, code = ending(error) or (_internal(error), 1)
    if interrupted is not None and isinstance(error, KeyboardInterrupt):
        sentence = interrupted
    if os.environ.get(SHOW) == "1" and code == 1:
        traceback.print_exception(error)
    say(sentence if chosen("json") else f"restorelcc: {sentence}", "error", code=code)
    return code


def _internal(error: BaseException) -> str:
    what = f"{type(error).__name__}: {first_line(error)[:300]}" if str(error).strip() else type(error).__name__
    return f"failed: internal error ({what}): please report it, {_kept(error)}"


def _kept(error: BaseException) -> str:
    """Write the traceback into the project's scratch folder, or else the system's, and say where it is."""
    if os.environ.get(SHOW) == "1":
        return "with the traceback above"
    folder = work_around(Path.cwd() / "params.yaml")
    try:
        handle, name = tempfile.mkstemp(".txt", "traceback-", folder)
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        traceback.print_exception(error)
        return "with the traceback above"
    return f"with the traceback in {name}"


def pipe_closed() -> int:
    """For a command whose reader left early (| head): quiet, with the exit code of a process that a pipe ended."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
    return 141
