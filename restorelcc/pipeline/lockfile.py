"""dvc.lock: repaired after a kill cut it off, and entries of other clones merged into it by stage name."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from restorelcc.base.documents import UniqueKeys, parse_yaml
from restorelcc.base.errors import BadInput
from restorelcc.base.publish import put

FILE = "dvc.lock"
_DIGEST = re.compile(r"[0-9a-f]{32}(\.dir)?")


class _FastLoader(UniqueKeys, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml's parser, thirty times as fast."""


def file_md5(path: Path) -> str:
    """The digest that DVC has for a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def read_lock(root: Path) -> dict[str, Any] | None:
    """Stage name to entry; empty without dvc.lock, None where the file is broken."""
    path = root / FILE
    if not path.is_file():
        return {}
    return _entries(path.read_bytes())


def _entries(content: bytes) -> dict[str, Any] | None:
    try:
        document = parse_yaml(content, FILE, _FastLoader)
    except BadInput:
        return None
    stages = document.get("stages") if isinstance(document, dict) else None
    whole = isinstance(stages, dict) and document.get("schema") == "2.0" and all(map(_is_whole, stages.values()))
    return stages if whole else None


def _is_whole(entry: Any) -> bool:
    """Whether an entry is one that DVC reads; of a file that was cut off the last one may be half of one."""
    if not (isinstance(entry, dict) and isinstance(entry.get("cmd"), str | list)):
        return False
    files = [entry[kind] for kind in ("deps", "outs") if kind in entry]
    if not all(isinstance(each, list) for each in files) or not isinstance(entry.get("params", {}), dict):
        return False
    return all(
        isinstance(file, dict)
        and isinstance(file.get("path"), str)
        and _DIGEST.fullmatch(str(file.get("md5", "0" * 32))) is not None
        for each in files
        for file in each
    )


def heal(root: Path) -> str | None:
    """Repair a dvc.lock that is empty or cut off. Returns what was done, or None if nothing was needed.

    The broken file is kept in .work. The committed one takes its place, or none: every stage that had been computed
    then comes back from the run-cache. The caller holds DVC's lock, so that nobody is writing the file.
    """
    if read_lock(root) is not None:
        return None
    broken = root / ".work" / "dvc.lock.broken"
    broken.parent.mkdir(exist_ok=True)
    (root / FILE).replace(broken)
    show = ["git", "show", f"HEAD:./{FILE}"]
    # The project of `restorelcc restore` has no git, and its machine may have none.
    committed = subprocess.run(show, cwd=root, capture_output=True, check=False) if shutil.which("git") else None
    if committed is not None and committed.returncode == 0 and _entries(committed.stdout) is not None:
        _write(root, committed.stdout)
        return f"{FILE} was broken; the committed one is restored, and later results come from the run-cache"
    return f"{FILE} was broken and has been removed; results come from the run-cache"


def merge(root: Path, entries: dict[str, Any]) -> None:
    """Put another clone's entries into dvc.lock, by stage name. Raises BadInput where our own file is broken."""
    own = read_lock(root)
    if own is None:
        raise BadInput(f"{FILE} is broken: run `restorelcc doctor --fix`")
    document = {"schema": "2.0", "stages": own | entries}
    _write(root, yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode())


def _write(root: Path, content: bytes) -> None:
    scratch = root / ".work" / "dvc.lock.new"
    scratch.parent.mkdir(exist_ok=True)
    scratch.write_bytes(content)
    put(scratch, root / FILE)
