"""A project for the installed package: dvc.yaml, params.yaml, versions/, and a DVC repository around them.

The pipeline is that of the package's own repository. There, stages depend on folders of code; here the code is
installed, so they depend on files of versions/code that hold the digests of these folders.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import restorelcc
from restorelcc.base.documents import read_text
from restorelcc.base.errors import BadInput
from restorelcc.base.publish import replace_text
from restorelcc.pipeline.dvc_log import told
from restorelcc.pipeline.reference import schema_text
from restorelcc.pipeline.versions import CODE, FOLDER, GROUPS, code_digest, installed

_TEMPLATES = Path(__file__).with_name("project")
_CODE_DEP = re.compile(r"^(\s+- )restorelcc/(\S+)$", re.MULTILINE)
_HEADER = """\
# The pipeline of restorelcc {version}: what each stage runs, reads and writes. The code is the installed package, whose
# digests, folder by folder, are in {code}; `restorelcc versions` brings them up to date.
"""
_IGNORED = (".gitignore", ".dvcignore")
SCHEMA = "params.schema.json"  # by which editors complete and check params.yaml
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
    """Write the files of a project and replace existing ones; files that are already right are not touched."""
    files = {"params.yaml": params, "dvc.yaml": pipeline()}  # the first says whose folder it is
    files |= {name: template(name[1:]) for name in _IGNORED}
    for group, packages in GROUPS.items():
        files[f"{FOLDER}/{group}"] = "".join(f"{name}=={installed(name) or ABSENT}\n" for name in packages)
    for room in code_folders():
        files[f"{FOLDER}/{CODE}/{room}"] = f"{code_digest(room)}\n"
    _write(folder, files)


def new_project(folder: Path, params: str | None = None) -> None:
    """A new project for a user, with git and DVC; lines are added to .gitignore and .dvcignore if they exist.

    params: the text of its params.yaml; None: the template.

    Raises BadInput where there is no git, or DVC cannot be set up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    init_repository(folder)
    ignored = {name: folder / name for name in _IGNORED if (folder / name).is_file()}
    before = {name: read_text(path) for name, path in ignored.items()}
    write_project(folder, f"# yaml-language-server: $schema={SCHEMA}\n{params or template('params')}")
    joined = {name: _joined(text, template(name[1:])) for name, text in before.items()}
    _write(folder, joined | {"prefect.yaml": template("prefect"), SCHEMA: schema_text()})


def _joined(text: str, more: str) -> str:
    known = set(text.splitlines())
    added = "".join(f"{line}\n" for line in more.splitlines() if line not in known)
    return f"{text.rstrip()}\n{added}".lstrip("\n")


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content.encode():
            replace_text(path, content)


def init_repository(folder: Path) -> None:
    """A git and a DVC repository in the folder; those that are there are kept, and git's may begin further above.

    DVC's is of the folder alone: dvc.yaml, what DVC ignores and its cache belong together.
    """
    if (folder / ".dvc").is_dir():
        return
    top = _git_root(folder)
    if top is None:
        done = subprocess.run(["git", "init", "--quiet"], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BadInput(f"git init failed in {folder}: {' '.join(done.stderr.split())}")
    _init_dvc(folder, subdir=top is not None and top != folder.resolve())


def init_scratch(folder: Path) -> None:
    """A DVC repository without git, for a folder that may be anywhere and may be deleted.

    Artifacts are hard links to the cache, where the file system has them: nothing is on the disk twice. (With `reflink`
    first DVC copies into its cache even where no reflink can be made.)
    """
    if (folder / ".dvc" / "config").is_file() and "no_scm" in read_text(folder / ".dvc" / "config"):
        return
    _init_dvc(folder, no_scm=True, force=True, cache={"type": ["hardlink", "copy"]})


def _git_root(folder: Path) -> Path | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--show-toplevel"],
            cwd=folder,
            env=os.environ | {"LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise BadInput("git is not installed: install it, because a project keeps its versions in git") from None
    if done.returncode == 0:
        return Path(done.stdout.strip()).resolve()
    if "not a git repository" in done.stderr:
        return None
    raise BadInput(f"{folder} lies in a git repository that git does not use: {' '.join(done.stderr.split())}")


def _init_dvc(folder: Path, cache: dict[str, Any] | None = None, **how: bool) -> None:
    """DVC's own init, which then sends no statistics. Raises BadInput with its words."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with told("init"), Repo.init(str(folder), **how) as repo, repo.config.edit("repo") as config:
            config["core"] |= {"analytics": False, "autostage": False}
            config["cache"] |= cache or {}
    except DvcException as error:
        raise BadInput(f"DVC cannot set up {folder}: {' '.join(str(error).split())}") from error
