"""Stage packages that can be called: `restorelcc.prune(model, ...)` beside `import restorelcc.stages.prune.stage`."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """Calls the function of the same name in restorelcc.api, which is imported only then."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        api = importlib.import_module("restorelcc.api")
        return getattr(api, self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_callable(name: str) -> None:
    """Let the package `name`, which is being imported, be called."""
    sys.modules[name].__class__ = CallablePackage
