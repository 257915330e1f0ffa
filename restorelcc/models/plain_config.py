"""A config.json without its class, whose import brings torch and takes seconds: enough to look at a checkpoint.

What config.json leaves to its class (a missing field, a null) is asked of the class, and only then is it imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from restorelcc.models.config_check import is_whole
from restorelcc.models.config_names import LAYER_TYPES, lacks, own_name


class PlainConfig:
    """Fields of a config by the names that most classes have for them, as the class of the config would give them."""

    def __init__(self, kind: str, values: Mapping[str, Any], by_class: Callable[[], Any]) -> None:
        """kind: the row in the table of families. by_class: gives the config as its class has it."""
        self.model_type = kind
        self._values, self._by_class = values, by_class

    @cached_property
    def _whole(self) -> Any:
        return self._by_class()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        key = own_name(self.model_type, name)
        if key != name and name in self._values:  # under both names: the class knows which holds
            return getattr(self._whole, name)
        if _is_plain(self._values.get(key)):
            return self._values[key]
        if key not in self._values and lacks(self.model_type, name):
            raise AttributeError(name)
        return getattr(self._whole, name)

    def get_text_config(self, decoder: bool = True) -> PlainConfig:
        """The decoder's part; `decoder` is there for the sake of the classes' own method."""
        nested = self._values.get("text_config")
        if not isinstance(nested, dict):
            return self
        return PlainConfig(self.model_type, nested, lambda: self._whole.get_text_config(decoder=decoder))


def _is_plain(value: Any) -> bool:
    """Whether a class takes the value as it is: a size, or a list of the kinds of layers. Of others it makes something
    (of the former names of these kinds, today's), or refuses them."""
    if isinstance(value, list):
        return all(name in LAYER_TYPES for name in value)
    return is_whole(value) and value > 0
