"""`--set section.key=value`: values put over those of params.yaml, and over a model's own."""

from __future__ import annotations

import re
from typing import Any

from restorelcc.base.errors import BadInput
from restorelcc.base.model_entry import SEQUENCE_LENGTH, over, settings_below, value_at
from restorelcc.pipeline.params_file import read_value
from restorelcc.pipeline.renamed import new_name

# In which order: an entry as a whole, then what stands for settings of it, then all else.
_FIRST = (re.compile(r"models(\.[^.=]+)?="), re.compile(r"models\.[^.=]+\.(budget|preset)="))


def put_over(raw: dict[str, Any], overrides: tuple[str, ...]) -> None:
    """Put each `section.key=value` over the content of a file, in place and in order, but first whole entries of models
    and their budgets and presets: these stand for settings, over which the others go. Raises BadInput for another form.
    """
    for override in sorted(map(new_name, overrides), key=_place):
        _override(raw, override)


def _place(override: str) -> int:
    return next((number for number, form in enumerate(_FIRST) if form.match(override)), len(_FIRST))


def _override(raw: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    *parents, last = key.split(".")
    section: Any = raw
    for parent in parents:
        section = section.setdefault(parent, {}) if isinstance(section, dict) else None
    if not sign or not isinstance(section, dict) or not all((*parents, last)):
        raise BadInput(f"--set {override[:80]!r} is not section.key=value: write for example --set prune.samples=64")
    section[last] = read_value(override[:80], text)
    models = raw.get("models")
    for entry in models.values() if isinstance(models, dict) else ():
        if isinstance(entry, dict):
            _over_settings(entry, (*parents, last), section[last])


def _over_settings(entry: dict[str, Any], key: tuple[str, ...], value: Any) -> None:
    """What is set for a section holds for a model too that has a value of its own for it."""
    *parents, last = ("settings", *key)
    inner: Any = entry
    if not isinstance(entry.get("settings") or {}, dict):  # what it is instead is told with everything else
        return
    if value_at(settings_below(entry), key) is not None:
        entry["settings"] = over(entry.get("settings") or {}, _nested(key, value))
    if len(key) == 2 and key[1] == SEQUENCE_LENGTH.get(key[0]) and entry.get("sequence_length"):
        entry["settings"] = over({key[0]: {last: value}}, entry.get("settings") or {})
    for parent in parents:
        inner = inner.get(parent) if isinstance(inner, dict) else None
    if isinstance(inner, dict) and last in inner:
        inner[last] = value


def _nested(key: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in reversed(key):
        value = {name: value}
    return dict(value)
