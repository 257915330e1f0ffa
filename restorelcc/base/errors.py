"""The two ways a command ends badly; the command line maps them to exit codes."""

import errno


class BadInput(Exception):
    """What the user gave cannot be used (exit code 2). One sentence: what is wrong, where, and what to do."""


class StageFailed(Exception):
    """The input was fine but the computation did not reach what it promised (exit code 1)."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_disk_full(error: BaseException) -> bool:
    """Whether an error is that of a disk, or of a quota, that is full; libraries in other languages say it in words."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "Disk quota exceeded" in str(error)
