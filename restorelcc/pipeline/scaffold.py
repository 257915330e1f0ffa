"""A project for the installed package: dvc.yaml, params.yaml, versions/, and a DVC repository around them.

The pipeline is that of the package's own repository. There, stages depend on folders of code; here the code is
installed, so they depend on files of versions/code that hold the digests of these folders.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import restorelcc
from restorelcc.base.errors import BadInput
from restorelcc.pipeline.versions import CODE, FOLDER, GROUPS, code_digest, installed

_TEMPLATES = Path(__file__).with_name("project")
_CODE_DEP = re.compile(r"^(\s+- )restorelcc/(\S+)$", re.MULTILINE)
_HEADER = """\
# The pipeline of restorelcc {version}: what each stage runs, reads and writes. The code is the installed package, whose
# digests, folder by folder, are in {code}; `restorelcc versions` brings them up to date.
"""
ABSENT = "absent"  # in place of the version of a package that is not installed


def template(name: str) -> str:
    """A file of the scaffold."""
    return (_TEMPLATES / f"{name}.template").read_text(encoding="utf-8")


def code_folders() -> list[str]:
    """Folders of the package that stages depend on: base, models, stages/prune, ..."""
    return sorted({match[2] for match in _CODE_DEP.finditer(template("dvc"))})


def pipeline() -> str:
    """dvc.yaml of a project."""
    stages = template("dvc").partition("\nstages:")
    text = _CODE_DEP.sub(rf"\1{FOLDER}/{CODE}/\2", "".join(stages[1:]).lstrip("\n"))
    return _HEADER.format(version=restorelcc.__version__, code=f"{FOLDER}/{CODE}") + text


def write_project(folder: Path, params: str) -> None:
    """Write the files of a project, and replace those that are there; what is right already is left alone."""
    files = {"dvc.yaml": pipeline(), "params.yaml": params, ".dvcignore": template("dvcignore")}
    files |= {".gitignore": template("gitignore")}
    for group, packages in GROUPS.items():
        files[f"{FOLDER}/{group}"] = "".join(f"{name}=={installed(name) or ABSENT}\n" for name in packages)
    for room in code_folders():
        files[f"{FOLDER}/{CODE}/{room}"] = f"{code_digest(room)}\n"
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")


def init_repository(folder: Path) -> None:
    """A git and a DVC repository in the folder; those that are there are kept, and git's may begin further above."""
    if (folder / ".dvc").is_dir():
        return
    top = _git_root(folder)
    if top is None:
        done = subprocess.run(["git", "init", "--quiet"], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BadInput(f"git init failed in {folder}: {' '.join(done.stderr.split())}")
    _init_dvc(folder, subdir=top is not None and top != folder.resolve())


def init_scratch(folder: Path) -> None:
    """A DVC repository without git, for a folder that may lie anywhere and be deleted.

    Artifacts are hard links to the cache, where the file system has them: nothing is on the disk twice. (With `reflink`
    first DVC copies into its cache even where no reflink can be made.)
    """
    if (folder / ".dvc" / "config").is_file() and "no_scm" in (folder / ".dvc" / "config").read_text(encoding="utf-8"):
        return
    _init_dvc(folder, no_scm=True, force=True, cache={"type": ["hardlink", "copy"]})


def _git_root(folder: Path) -> Path | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--show-toplevel"], cwd=folder, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise BadInput("git is not installed: a project's versions are kept by it") from None
    return Path(done.stdout.strip()).resolve() if done.returncode == 0 else None


def _init_dvc(folder: Path, cache: dict[str, Any] | None = None, **how: bool) -> None:
    """DVC's own init, which then sends no statistics. Raises BadInput with its words."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo.init(str(folder), **how) as repo, repo.config.edit("repo") as config:
            config["core"] |= {"analytics": False, "autostage": False}
            config["cache"] |= cache or {}
    except DvcException as error:
        raise BadInput(f"DVC cannot set up {folder}: {' '.join(str(error).split())}") from error
