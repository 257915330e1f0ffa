"""`restorelcc doctor`: what could go wrong here, and what to do about it. Mends a broken dvc.lock, nothing else."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.layout import Layout
from restorelcc.pipeline.lockfile import heal, read_lock
from restorelcc.pipeline.remotes import check_remote
from restorelcc.pipeline.running import lock_owner
from restorelcc.pipeline.versions import differences

_LOW_DISK = 5 * 2**30


class Finding(NamedTuple):
    """One line of the diagnosis. `fault` is what needs a hand; the rest is information."""

    fault: bool
    text: str


def add(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("doctor", help="Diagnose: packages, device, disk, locks, dvc.lock, cache, remote, Prefect server.")(
        doctor
    )


def doctor(
    cache: Annotated[bool, typer.Option("--cache", help="also read every cached file and compare its digest")] = False,
    params: Annotated[Path, typer.Option("--params", help="the parameter file, in the project's folder")] = Path(
        "params.yaml"
    ),
) -> None:
    """Print one line per finding; exit code 1 when something needs a hand."""
    root = params.resolve().parent
    findings = [*_machine(root), *_packages(root), *_runs(root), *_dvc(root, cache), *_prefect()]
    for finding in findings:
        typer.echo(f"{'fault' if finding.fault else 'ok':6} {finding.text}")
    if faults := sum(finding.fault for finding in findings):
        raise StageFailed(f"doctor found {faults} fault{'s' if faults > 1 else ''}, each with its cure above")


def _machine(root: Path) -> Iterator[Finding]:
    yield Finding(False, f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, {_gpus()}")
    free = shutil.disk_usage(root).free
    text = f"{free / 2**30:.0f} GiB free in {root}"
    yield Finding(
        free < _LOW_DISK, text + ("" if free >= _LOW_DISK else ": make room, an artifact needs its size twice")
    )


def _gpus() -> str:
    gpus = Path("/proc/driver/nvidia/gpus")
    return f"{len(list(gpus.iterdir()))} GPUs" if gpus.is_dir() else "no GPU"


def _packages(root: Path) -> Iterator[Finding]:
    try:
        changed = differences(root)
    except BadInput as error:
        yield Finding(True, str(error))
        return
    for package, (recorded, found) in changed.items():
        yield Finding(
            True,
            f"{package} {found} is installed, versions/ has {recorded}: run `restorelcc versions`, "
            "or install the recorded versions again (in a clone: `make -B env`)",
        )
    if not changed:
        yield Finding(False, "installed packages are those of versions/")


def _runs(root: Path) -> Iterator[Finding]:
    work = Layout(root).work
    running = {path.name: owner for path in sorted((work / "locks").glob("*")) if (owner := lock_owner(path))}
    for stage, owner in running.items():
        yield Finding(False, f"{stage} is running as process {owner}")
    left = sorted(work.glob("write-*"))
    if left and not running:
        yield Finding(True, f"{len(left)} scratch folders of killed stages: rm -r {work}/write-*")


def _dvc(root: Path, deep: bool) -> Iterator[Finding]:
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo, lock_repo

    try:
        repo = Repo(str(root))
    except DvcException as error:
        yield Finding(True, f"DVC cannot open {root}: {error}")
        return
    with repo:
        if repo.config["core"].get("hardlink_lock"):
            yield Finding(
                True, "core.hardlink_lock is set, and a killed process keeps it: dvc config --unset core.hardlink_lock"
            )
        try:
            with lock_repo(repo):
                yield _lock_file(root)
        except LockError:
            yield Finding(False, "another dvc command holds DVC's lock; dvc.lock was not looked at")
        yield from _cache(Path(repo.cache.local.path)) if deep else ()
        yield from _remote(repo)


def _lock_file(root: Path) -> Finding:
    if mended := heal(root):
        return Finding(True, f"{mended}: run `dvc repro`")
    return Finding(False, f"dvc.lock is whole, {len(read_lock(root) or {})} stages")


def _cache(folder: Path) -> Iterator[Finding]:
    files = [path for path in sorted((folder).glob("??/*")) if path.is_file()]
    bad = [path for path in files if _md5(path) != path.parent.name + path.name.removesuffix(".dir")]
    for path in bad:
        yield Finding(True, f"{path} was altered, and a push would spread it: delete it, then pull or compute it again")
    if not bad:
        yield Finding(False, f"{len(files)} cached files have the digest that they are named by")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _remote(repo: object) -> Iterator[Finding]:
    config = repo.config  # type: ignore[attr-defined]
    name = config["core"].get("remote")
    if not name:
        yield Finding(False, "no remote: `restorelcc share URL` makes one")
        return
    try:
        check_remote(repo, name)
    except BadInput as error:
        yield Finding(True, str(error))
        return
    verified = config["remote"][name].get("verify")
    text = f"remote {name!r} answers"
    yield Finding(
        not verified,
        text if verified else f"{text}, but its files are not verified: dvc remote modify {name} verify true",
    )


def _prefect() -> Iterator[Finding]:
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        yield Finding(False, "PREFECT_API_URL is not set: flows run with a server of their own")
        return
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10):
            yield Finding(False, f"the Prefect server at {url} answers")
    except (OSError, ValueError) as error:
        yield Finding(
            True, f"no Prefect server answers at {url} ({error}): `prefect server start`, or unset PREFECT_API_URL"
        )
