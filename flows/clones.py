"""A clone of the project for a sweep's grid or one model's share of the work, apart from the user's folder."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from restorelcc.base.cell import ratio_label
from restorelcc.base.documents import read_yaml, yaml_text
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.pipeline.renamed import with_new_names


def git(root: Path, *arguments: str) -> str:
    """Output of a git command. Raises StageFailed with git's own words."""
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StageFailed(f"git {arguments[0]} failed in {root}: {' '.join(done.stderr.split())}")
    return done.stdout.strip()


def committed_revision(root: Path, revision: str = "HEAD") -> str:
    """The commit that a clone will check out. Raises BadInput where there is none."""
    try:
        return git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except StageFailed:
        raise BadInput(
            f"{root} has no commit {revision!r}: commit the project first, because clones run committed revisions"
        ) from None


def fresh_clone(source: str, folder: Path, revision: str) -> Path:
    """A clone of `source` in `folder` at `revision`, made or brought up to date; its artifacts stay."""
    if not (folder / ".git").is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        git(folder.parent, "clone", "--quiet", "--no-checkout", source, str(folder))
    git(folder, "fetch", "--quiet", "--force", source, revision)
    git(folder, "checkout", "--quiet", "--force", "--detach", revision)
    return folder


def share_cache(clone: Path, cache: Path) -> None:
    """Make a clone use another's DVC cache and run-cache: each restores what the other has computed."""
    config = clone / ".dvc" / "config.local"
    config.write_text(f"[cache]\n    dir = {cache}\n", encoding="utf-8")


def write_grid(clone: Path, axes: dict[str, list[str] | list[float] | None]) -> None:
    """Put axes into the clone's params.yaml; an axis that is None stays as it is committed."""
    path = clone / "params.yaml"
    content = with_new_names(read_yaml(path))
    content["grid"] |= given_axes(content, axes)
    path.write_text(yaml_text(content), encoding="utf-8")


def given_axes(committed: Any, axes: dict[str, Any]) -> dict[str, Any]:
    """The axes that are given, and of `speed` in the committed params.yaml the head ratios that are among them."""
    given = {axis: values for axis, values in axes.items() if values is not None}
    own = committed.get("grid") if isinstance(committed, dict) else None
    timed = own.get("speed") if isinstance(own, dict) else None
    if "head_ratio" not in given or not isinstance(timed, list):
        return given
    left = set(map(ratio_label, given["head_ratio"]))
    return given | {"speed": [ratio for ratio in timed if ratio_label(ratio) in left]}
