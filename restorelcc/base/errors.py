"""The ways a command can fail, each with one sentence and an exit code: 1 the computation failed, 2 bad input."""

from __future__ import annotations

import errno


class BadInput(Exception):
    """The user's input cannot be used (exit code 2). One sentence: what is wrong, where, and what to do."""


class StageFailed(Exception):
    """The input was fine, but the computation failed (exit code 1)."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_disk_full(error: BaseException) -> bool:
    """Whether an error is that of a disk, or of a quota, that is full; libraries in other languages say it in words."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "Disk quota exceeded" in str(error)


def ending(error: BaseException) -> tuple[str, int] | None:
    """What a command says that ends with the error, and its exit code; None for a fault of the program itself."""
    if isinstance(error, BadInput):
        return f"error: {error}", 2
    if isinstance(error, StageFailed):
        return f"failed: {error}", 1
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; nothing half-written is left", 130
    if is_disk_full(error):
        return (
            f"failed: the disk is full ({first_line(error)}): make room and run again; nothing half-written is left",
            1,
        )
    return None
