"""versions/: package versions that stages depend on, as files for DVC; in a separate project also digests of the code.

DVC knows files and parameters, not packages. So the versions that can change a result are tracked files, one for each
group of packages by what they can change; a stage depends on one or two of them. Where this package is installed rather
than part of the repository, versions/code/ has a file with the digest of each of its folders, for the same purpose. No
stage runs while the files and what is installed disagree.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from restorelcc.base.errors import BadInput
from restorelcc.base.publish import replace_text
from restorelcc.pipeline.workspace import at_work, wait_for_others

FOLDER = "versions"
CODE = "code"  # below it: digests of the installed package's folders
_PACKAGE = Path(__file__).parents[1]
# What a new project records; the repository's own files are asserted equal to it.
GROUPS = {
    "corpus": ("datasets", "jinja2", "scikit-learn", "sentence-transformers"),
    "evaluate": ("datasets", "jinja2", "lm-eval"),
    "numerics": (
        "accelerate",
        "numpy",
        "peft",
        "pyarrow",
        "safetensors",
        "scipy",
        "tokenizers",
        "torch",
        "transformers",
    ),
    "report": ("jinja2", "matplotlib", "pyarrow"),
}


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
    return {path.name: _read(path) for path in sorted((root / FOLDER).glob("[!.]*")) if path.is_file()}


def _read(path: Path) -> dict[str, str]:
    try:
        return dict(line.split("==") for line in path.read_text(encoding="utf-8").splitlines() if line)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} must hold lines package==version: restore it with `git checkout {FOLDER}`") from error


def differences(root: Path) -> dict[str, tuple[str, str]]:
    """Package to (recorded, installed) where they differ in any group: each is a dependency of its own. What is not
    installed cannot have computed anything."""
    found: dict[str, tuple[str, str]] = {}
    for group in read_groups(root).values():
        for package, old in group.items():
            new = installed(package)
            if new is not None and old != new:
                found.setdefault(package, (old, new))
    return found


def code_digest(folder: str) -> str:
    """SHA-256 over names and content of the installed package's files in one of its folders, hex."""
    top, total = _PACKAGE / folder, hashlib.sha256()
    if not top.is_dir():
        raise BadInput(
            f"{FOLDER}/{CODE}/{folder} belongs to a folder that the installed restorelcc does not have: it was "
            "upgraded, take dvc.yaml and versions/ from a new project (`restorelcc init`)"
        )
    for path in sorted(top.rglob("*")):
        name = path.relative_to(top)
        if path.is_file() and "__pycache__" not in name.parts and path.suffix != ".pyc":
            total.update(f"{name.as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def changed_code(root: Path) -> dict[str, str]:
    """Folder of the package to its digest, where versions/code/ has another; nothing where the code is no package."""
    files = sorted(path for path in (root / FOLDER / CODE).rglob("[!.]*") if path.is_file())
    found = {path: code_digest(path.relative_to(root / FOLDER / CODE).as_posix()) for path in files}
    return {
        path.relative_to(root / FOLDER / CODE).as_posix(): digest
        for path, digest in found.items()
        if path.read_text(encoding="utf-8").strip() != digest
    }


def disagreements(root: Path) -> list[str]:
    """Sentences on what is not as versions/ has it, packages and code: no stage runs meanwhile."""
    found = []
    if changed := differences(root):
        named = ", ".join(f"{package} {new} where {FOLDER}/ has {old}" for package, (old, new) in changed.items())
        found.append(
            f"installed is {named}: run `restorelcc versions` to compute again what used it, "
            "or install the recorded versions again (in a clone: `make -B env`) to keep the results"
        )
    if code := changed_code(root):
        folders = ", ".join(f"restorelcc/{folder}" for folder in code)
        found.append(
            f"the installed code of {folders} is not that of {FOLDER}/{CODE}: run `restorelcc versions` to compute "
            "again what used it"
        )
    return found


def check_versions(root: Path) -> None:
    """Raises BadInput when a stage would run with other packages or other code than versions/ names."""
    if (root / FOLDER).is_dir() and (found := disagreements(root)):
        raise BadInput(found[0])


def write_versions(root: Path) -> list[str]:
    """Write what is installed; one line per change. Files of what has not changed are left alone, and all of them as
    long as a run is at work here, which depends on them."""
    changed, code = differences(root), changed_code(root)
    if (changed or code) and at_work(root):
        wait_for_others(root, FOLDER)
        return write_versions(root)
    for package, (_, new) in changed.items():
        write_version(root, package, new)
    for folder, digest in code.items():
        replace_text(root / FOLDER / CODE / folder, f"{digest}\n")
    lines = [f"{FOLDER}: {package} {old} -> {new}" for package, (old, new) in changed.items()]
    return [*lines, *(f"{FOLDER}: the code of restorelcc/{folder} changed" for folder in code)]


def write_version(root: Path, package: str, value: str) -> None:
    """Record one version in every group that has the package."""
    for group, versions in read_groups(root).items():
        if versions.get(package, value) != value:
            lines = [f"{name}=={value if name == package else old}\n" for name, old in versions.items()]
            replace_text(root / FOLDER / group, "".join(lines))
