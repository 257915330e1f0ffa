"""Checks of the names that make up the grid."""

from __future__ import annotations

import re

from restorelcc.base.errors import BadInput

_ALIAS = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
RESERVED_ALIASES = ("inputs", "corpus", "metrics", "report", "logs")


def check_alias(alias: object) -> str:
    """A model's key under `models`: [a-z0-9-], none of the reserved folder names."""
    if not isinstance(alias, str) or not _ALIAS.fullmatch(alias):
        raise BadInput(f"models has the key {alias!r}: use lower-case letters, digits and single dashes only")
    if alias in RESERVED_ALIASES:
        raise BadInput(f"models has the key {alias!r}, which names a folder of data/: rename it")
    return alias


AUTO = "auto"  # in place of a head ratio: `compensate` chooses it


def ratio_label(value: object) -> str:
    """The text DVC puts into stage names and paths for a value of grid.head_ratio. Raises BadInput outside (0, 1]."""
    if value == AUTO:
        return AUTO
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise BadInput(
            f"grid.head_ratio has {value!r}: it is the share of attention heads that get a compensation, "
            "give a number above 0 and at most 1 (for example 0.10), or auto"
        )
    return str(value)
