"""versions/: the package versions that stages depend on, as DVC sees them.

DVC knows files and parameters, not packages. So the versions that can change a result are tracked files, one for each
group of packages by what they can change; a stage depends on one or two of them, and no stage runs while the files and
the installed packages disagree.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from restorelcc.base.errors import BadInput

FOLDER = "versions"


def installed(package: str) -> str | None:
    """The public version of a distribution: 2.13.0 for 2.13.0+cpu, None where it is not installed."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None


def read_groups(root: Path) -> dict[str, dict[str, str]]:
    """Group to package to recorded version. Raises BadInput where there is none, or a line is no `package==version`."""
    if not (root / FOLDER).is_dir():
        raise BadInput(f"{root / FOLDER} is not there: restore it with `git checkout {FOLDER}`")
    return {path.name: _read(path) for path in sorted((root / FOLDER).glob("[!.]*"))}


def _read(path: Path) -> dict[str, str]:
    try:
        return dict(line.split("==") for line in path.read_text(encoding="utf-8").splitlines() if line)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} must hold lines package==version: restore it with `git checkout {FOLDER}`") from error


def read_versions(root: Path) -> dict[str, str]:
    """Package to recorded version, of all groups."""
    return {package: recorded for group in read_groups(root).values() for package, recorded in group.items()}


def differences(root: Path) -> dict[str, tuple[str, str]]:
    """Package to (recorded, installed) where they differ; what is not installed cannot have computed anything."""
    found = {package: (recorded, installed(package)) for package, recorded in read_versions(root).items()}
    return {package: (old, new) for package, (old, new) in found.items() if new is not None and old != new}


def check_versions(root: Path) -> None:
    """Raises BadInput when a stage would run with other packages than those that versions/ names."""
    if not (root / FOLDER).is_dir() or not (changed := differences(root)):
        return
    named = ", ".join(f"{package} {new} where {FOLDER}/ has {old}" for package, (old, new) in changed.items())
    raise BadInput(
        f"installed is {named}: run `restorelcc versions` to compute again what used it, "
        "or install the recorded versions again (in a clone: `make -B env`) to keep the results"
    )


def write_versions(root: Path) -> list[str]:
    """Write what is installed; one line per change. Files of groups that have not changed are left alone."""
    changed = differences(root)
    for package, (_, new) in changed.items():
        write_version(root, package, new)
    return [f"{FOLDER}: {package} {old} -> {new}" for package, (old, new) in changed.items()]


def write_version(root: Path, package: str, value: str) -> None:
    """Record one version in every group that has the package."""
    for group, versions in read_groups(root).items():
        if versions.get(package, value) != value:
            scratch = root / FOLDER / f".{group}.{os.getpid()}"
            lines = [f"{name}=={value if name == package else old}\n" for name, old in versions.items()]
            scratch.write_text("".join(lines), encoding="utf-8")
            scratch.replace(root / FOLDER / group)
