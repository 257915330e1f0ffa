"""Sizes as people write them."""

from __future__ import annotations

import re

from restorelcc.base.errors import BadInput

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size_in_bytes(option: str, text: str) -> int:
    """`5GB`, `500 MiB` or a plain number of bytes. Raises BadInput naming the option."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip(), re.IGNORECASE)
    if found is None or found[2].upper() not in _UNITS or float(found[1]) <= 0:
        raise BadInput(f"{option} {text!r} is not a size: write for example 5GB, 500MB or 2GiB")
    return max(1, int(float(found[1]) * _UNITS[found[2].upper()]))
