"""Settings of one run: DVC and the stages take them over those of params.yaml, and no file is edited.

DVC reads params.yaml in one function, which is given the changed settings in this process; the stages, which are
processes of their own, get them by a variable that this module alone sets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from restorelcc.base.documents import parse_json

VARIABLE = "_RESTORELCC_SETTINGS_OF_ONE_RUN"


def settings_of_this_run() -> tuple[str, ...]:
    """`section.key=value`, as the run that started this process has them; none elsewhere."""
    given = os.environ.get(VARIABLE)
    return tuple(parse_json(given, VARIABLE, kind=list)) if given and "DVC_STAGE" in os.environ else ()


def environment(settings: tuple[str, ...]) -> dict[str, str]:
    """What the processes of a run's stages need."""
    return {VARIABLE: json.dumps(settings)} if settings else {}


@contextmanager
def dvc_reads(params: Path, change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """While this is active, DVC in this process finds the file's content changed in place; the file stays as it is."""
    from dvc.dependency import param
    from dvc.utils import serialize

    read = serialize.load_path

    def read_over(fs_path: str, fs: Any, **options: Any) -> Any:
        content = read(fs_path, fs, **options)
        if fs.protocol == "local" and Path(fs_path).absolute() == params:
            change(content)
        return content

    modules: tuple[Any, ...] = (serialize, param)
    for module in modules:
        module.load_path = read_over
    try:
        yield
    finally:
        for module in modules:
            module.load_path = read
