"""A clone of the project for a sweep's grid or one model's share of the work, apart from the user's folder."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from restorelcc.base.cell import ratio_label
from restorelcc.base.documents import yaml_text
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.publish import put, scratch_folder
from restorelcc.pipeline.params_file import read_params
from restorelcc.pipeline.renamed import with_new_names

# Set in git's hooks: a command would be of that repository, whatever folder it runs in.
_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")


def git(root: Path, *arguments: str) -> str:
    """Output of a git command; names in it may be bytes that are no UTF-8. Raises StageFailed with git's own words."""
    here = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    command = ["git", *arguments]
    done = subprocess.run(
        command, cwd=root, env=here, capture_output=True, text=True, errors="surrogateescape", check=False
    )
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
    """A clone of `source` in `folder` at `revision`, made or brought up to date; its artifacts stay.

    What a killed clone has left is made anew: git would take such a folder for one of the repository around it, and
    check out the revision there.
    """
    if not _is_repository(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(folder.parent, f".{folder.name}.unfinished-", ".*.unfinished-*") as scratch:
            git(scratch, "clone", "--quiet", "--no-checkout", source, str(scratch / "clone"))
            if folder.exists():
                folder.replace(scratch / "replaced")
            put(scratch / "clone", folder)
    git(folder, "fetch", "--quiet", "--force", source, revision)
    git(folder, "checkout", "--quiet", "--force", "--detach", revision)
    return folder


def _is_repository(folder: Path) -> bool:
    try:
        return Path(git(folder, "rev-parse", "--absolute-git-dir")).resolve() == (folder / ".git").resolve()
    except (StageFailed, OSError):
        return False


def place_in_repository(root: Path) -> tuple[Path, Path]:
    """The top of the git repository that a project is in, and the project's folder as seen from there."""
    top = Path(git(root, "rev-parse", "--show-toplevel")).resolve()
    return top, root.resolve().relative_to(top)


def share_cache(clone: Path, cache: Path) -> None:
    """Make a clone use another's DVC cache and run-cache: each restores what the other has computed."""
    from dvc.repo import Repo

    with Repo(str(clone)) as repo, repo.config.edit("local") as config:
        config["cache"]["dir"] = str(cache)


def write_grid(clone: Path, axes: dict[str, list[str] | list[float] | None]) -> None:
    """Put axes into the clone's params.yaml; an axis that is None stays as it is committed."""
    path = clone / "params.yaml"
    content = with_new_names(read_params(path))
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
