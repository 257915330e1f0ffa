"""The first thing about a checkpoint that is not as it should be."""

from restorelcc.base.errors import StageFailed


class Violation(StageFailed):
    """Names what is wrong, and where; ends the command with exit code 1."""
