"""dvc.lock: repaired after a kill cut it off, and entries of other clones merged into it by stage name."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from restorelcc.base.documents import UniqueKeys, parse_yaml
from restorelcc.base.errors import BadInput
from restorelcc.base.publish import put

FILE = "dvc.lock"


class _FastLoader(UniqueKeys, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml's parser, thirty times as fast."""


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
    return stages if isinstance(stages, dict) else None


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
    committed = subprocess.run(["git", "show", f"HEAD:./{FILE}"], cwd=root, capture_output=True, check=False)
    if committed.returncode == 0 and _entries(committed.stdout) is not None:
        _write(root, committed.stdout)
        return f"{FILE} was broken; the committed one is restored, and later results come from the run-cache"
    return f"{FILE} was broken and has been removed; results come from the run-cache"


def merge(root: Path, entries: dict[str, Any]) -> None:
    """Put another clone's entries into dvc.lock, by stage name. Raises BadInput where our own file is broken."""
    own = read_lock(root)
    if own is None:
        raise BadInput(f"{FILE} is broken: run `restorelcc doctor`")
    document = {"schema": "2.0", "stages": own | entries}
    _write(root, yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode())


def _write(root: Path, content: bytes) -> None:
    scratch = root / ".work" / "dvc.lock.new"
    scratch.parent.mkdir(exist_ok=True)
    scratch.write_bytes(content)
    put(scratch, root / FILE)
