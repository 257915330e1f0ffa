"""The two ways a command ends badly; the command line maps them to exit codes."""


class BadInput(Exception):
    """What the user gave cannot be used (exit code 2). One sentence: what is wrong, where, and what to do."""


class StageFailed(Exception):
    """The input was fine but the computation did not reach what it promised (exit code 1)."""
