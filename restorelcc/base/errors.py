"""The ways a command can fail, each with one sentence and an exit code: 1 the computation failed, 2 bad input."""

from __future__ import annotations

import errno
import unicodedata

_OVERRIDES = set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # they turn the text around

_NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP)  # which only a path can be that somebody gave
_RIGHTS = (errno.EACCES, errno.EPERM, errno.EROFS, *_NO_NAME)


class BadInput(Exception):
    """The user's input cannot be used (exit code 2). One sentence: what is wrong, where, and what to do."""


class StageFailed(Exception):
    """The input was fine, but the computation failed (exit code 1)."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does, but for the exit code (143)."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_disk_full(error: BaseException) -> bool:
    """Whether an error is that of a disk, or of a quota, that is full; libraries in other languages say it in words."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "Disk quota exceeded" in str(error)


def has_controls(text: str) -> bool:
    """Whether a text has characters that steer what shows it: control codes, halves of characters, changes of
    direction, ends of a line."""
    return any(unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") or each in _OVERRIDES for each in text)


def one_line(text: object) -> str:
    """A text whose control characters and changes of direction are shown as escapes, `\\x1b`: names from files get into
    sentences, and may steer a terminal. Ends of lines and tabs are blanks."""
    return "".join(_shown(each) if has_controls(each) else each for each in str(text))


def _shown(character: str) -> str:
    return " " if character in "\n\t" else character.encode("unicode_escape", "surrogatepass").decode()


def ending(error: BaseException) -> tuple[str, int] | None:
    """What a command says that ends with the error, and its exit code; None for a fault of the program itself."""
    if isinstance(error, BadInput | StageFailed):
        title, code = ("error", 2) if isinstance(error, BadInput) else ("failed", 1)
        return f"{title}: {one_line(error)}", code
    if isinstance(error, Terminated):
        return "interrupted by SIGTERM; nothing half-written is left", 143
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; nothing half-written is left", 130
    if is_disk_full(error):
        return (
            f"failed: the disk is full ({first_line(error)}): make room and run again; nothing half-written is left",
            1,
        )
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        said = first_line(error)
        return f"failed: out of memory ({said}): take smaller batches (docs/models.md) or a machine with more", 1
    if isinstance(error, OSError) and error.errno in _RIGHTS and error.filename is not None:
        name, is_given = str(error.filename)[:300], error.errno in _NO_NAME
        title, code = ("error", 2) if is_given else ("failed", 1)
        return f"{title}: {name} cannot be used ({error.strerror}): correct the path or its rights and run again", code
    return None
