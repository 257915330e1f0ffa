"""versions.json: the package versions that stages depend on, as DVC reads them.

DVC knows files and parameters, not packages. So the versions that can change a result stand in a tracked file, stages
list theirs under `params` in dvc.yaml, and no stage runs while the file and the installed packages disagree.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from restorelcc.core.errors import BadInput

FILE = "versions.json"


def installed(package: str) -> str | None:
    """The public version of a distribution: 2.13.0 for 2.13.0+cpu, None where it is not installed."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None


def read_versions(root: Path) -> dict[str, str | None]:
    """Package to recorded version. Raises BadInput where the file is not a JSON object."""
    path = root / FILE
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read ({error}): restore it with `git checkout {FILE}`") from error
    if not isinstance(recorded, dict):
        raise BadInput(f"{path} must map packages to versions: restore it with `git checkout {FILE}`")
    return recorded


def differences(root: Path) -> dict[str, tuple[str | None, str]]:
    """Package to (recorded, installed) where they differ; what is not installed cannot have computed anything."""
    found = {package: (recorded, installed(package)) for package, recorded in read_versions(root).items()}
    return {package: (old, new) for package, (old, new) in found.items() if new is not None and old != new}


def check_versions(root: Path) -> None:
    """Raises BadInput when a stage would run with other packages than those that versions.json names."""
    if not (root / FILE).is_file() or not (changed := differences(root)):
        return
    named = ", ".join(f"{package} {new} where {FILE} has {old}" for package, (old, new) in changed.items())
    raise BadInput(
        f"installed is {named}: run `restorelcc versions` to compute again what used it, "
        "or install constraints.txt to keep the results"
    )


def write_versions(root: Path) -> list[str]:
    """Write what is installed; one line per change. The file is left alone when nothing changed."""
    changed = differences(root)
    if not changed:
        return []
    content = read_versions(root) | {package: new for package, (_, new) in changed.items()}
    scratch = root / f".{FILE}.{os.getpid()}"
    scratch.write_text(json.dumps(dict(sorted(content.items())), indent=2) + "\n", encoding="utf-8")
    scratch.replace(root / FILE)
    return [f"{FILE}: {package} {old} -> {new}" for package, (old, new) in changed.items()]
