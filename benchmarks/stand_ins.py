"""Stand-ins for pydantic, for machines that have torch, transformers and safetensors only.

The classes of the config sections are all that needs pydantic; here they keep their defaults and check nothing.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any


class _Model:
    def __init__(self, **values: Any) -> None:
        for kind in reversed(type(self).__mro__):
            vars(self).update({name: value for name, value in vars(kind).items() if name in _annotated(kind)})
        vars(self).update(values)


def _annotated(kind: type) -> dict[str, Any]:
    return vars(kind).get("__annotations__", {})


def _default(default: Any = None, **_: Any) -> Any:
    return default


def _unchanged(*_: Any, **__: Any) -> Any:
    return lambda function: function


def provide() -> list[str]:
    """Put a stand-in where pydantic is not installed; returns the names of what was stood in for."""
    if importlib.util.find_spec("pydantic") is not None:
        return []
    module = ModuleType("pydantic")
    names = {"BaseModel": _Model, "ConfigDict": dict, "Field": _default, "ValidationError": ValueError}
    names |= {"model_validator": _unchanged, "field_validator": _unchanged}
    for name, value in names.items():
        setattr(module, name, value)
    sys.modules["pydantic"] = module
    return ["pydantic"]
