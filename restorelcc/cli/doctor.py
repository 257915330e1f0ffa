"""`restorelcc doctor`: what is or could go wrong here, and what to do about it; with --fix what can be mended is."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.layout import Layout, project_of
from restorelcc.base.messages import say_named

if TYPE_CHECKING:
    from restorelcc.base.unfinished import Unfinished

_LOW_DISK = 5 * 2**30
_DELETE = "`restorelcc doctor --fix` deletes it"


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
    fix: Annotated[bool, typer.Option("--fix", help="mend what a killed process left")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="with --fix: mend, say what was mended, look at nothing else")
    ] = False,
    params: Annotated[Path, typer.Option("--params", help="the parameter file, in the project's folder")] = Path(
        "params.yaml"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout")] = False,
) -> None:
    """Print one line per finding; exit code 1 when something needs a hand."""
    root = project_of(params)
    if not root.is_dir():
        raise BadInput(f"{params} does not exist: run in the project's folder or give --params FILE")
    if quiet and not fix:
        raise BadInput("doctor --quiet is for --fix: add it, or leave --quiet out")
    mended = list(_mended(root, cache)) if fix else []
    mended += _without_left_work(params) if fix and not quiet else []  # `make repro` mends quietly, for any grid
    if quiet and as_json:
        raise BadInput("doctor --quiet prints no result: leave --json out, or --quiet")
    if quiet:
        for finding in mended:
            say_named(finding.text)
        _refuse_beside_another_run(root)
        return
    findings = [*mended, *_machine(root, params), *_packages(root), *_runs(root), *_crashed(root), *_left_work(params)]
    findings += _dvc(root, cache)
    findings += _prefect()
    if as_json:
        typer.echo(json.dumps([finding._asdict() for finding in findings], indent=2, ensure_ascii=False))
    for finding in () if as_json else findings:
        typer.echo(f"{'fault' if finding.fault else 'ok':6} {finding.text}")
    if faults := sum(finding.fault for finding in findings):
        raise StageFailed(f"doctor found {faults} fault{'s' if faults > 1 else ''}, each with its cure above")


def _mended(root: Path, deep: bool) -> Iterator[Finding]:
    """Mend what can be mended without a choice; a line for each."""
    from restorelcc.base.publish import delete_left
    from restorelcc.pipeline import workspace

    yield from (Finding(False, f"mended: {sentence}") for sentence in workspace.mend(root))
    for home in _scratch_homes(root):
        if count := delete_left(home):
            yield Finding(False, f"mended: {count} scratch folders of killed stages in {home} are gone")
    for path in _altered(root) if deep else ():
        path.chmod(0o644)
        path.unlink()
        yield Finding(False, f"mended: {path} was altered, and is gone: pull it, or compute it again by `dvc repro`")


def _refuse_beside_another_run(root: Path) -> None:
    """Raises StageFailed where another run works here; a workspace is no place for two at once."""
    from restorelcc.pipeline import workspace

    if runs := workspace.at_work(root):
        raise StageFailed(
            f"{' and '.join(map(str, runs))} is at work in {root}: wait until it has ended, or end it, then run again"
        )


def _machine(root: Path, params: Path) -> Iterator[Finding]:
    from restorelcc.pipeline.gpus import diagnosed
    from restorelcc.pipeline.params import load_params

    try:
        given = load_params(params)
        devices = {alias: given.models[alias].device for alias in given.grid.model}
    except BadInput:  # `check` says what is wrong with it
        devices = {}
    gpus = diagnosed(devices)
    yield Finding(False, f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, {gpus.text}")
    yield from (Finding(True, sentence) for sentence in gpus.faults)
    free = shutil.disk_usage(root).free
    text = f"{free / 2**30:.0f} GiB free in {root}"
    yield Finding(
        free < _LOW_DISK, text + ("" if free >= _LOW_DISK else ": make room, an artifact needs its size twice")
    )


def _packages(root: Path) -> Iterator[Finding]:
    from restorelcc.pipeline.versions import disagreements

    try:
        changed = disagreements(root)
    except BadInput as error:
        yield Finding(True, str(error))
        return
    yield from (Finding(True, sentence) for sentence in changed)
    if not changed:
        yield Finding(False, "installed packages are those of versions/")


def _runs(root: Path) -> Iterator[Finding]:
    from restorelcc.pipeline import workspace
    from restorelcc.pipeline.running import lock_owner

    work = Layout(root).work
    for path in sorted((work / "locks").glob("*")):
        with suppress(FileNotFoundError):  # of a flow that has just ended
            if owner := lock_owner(path):
                yield Finding(False, f"{workspace.what_holds(path)} is running as process {owner}")
    for run in workspace.other_runs(root):
        yield Finding(False, f"{run} is at work here: another run in this folder waits for it, or ends and names it")


def _crashed(root: Path) -> Iterator[Finding]:
    """What killed processes left, and what would stop a run at its end."""
    from restorelcc.base.publish import left_behind, scratch_home, why_no_link, why_not_writable
    from restorelcc.pipeline import workspace
    from restorelcc.pipeline.lockfile import read_lock

    found = workspace.faults(root)
    homes = [(home, count) for home in _scratch_homes(root) if (count := len(left_behind(home)))]
    if not found and (entries := read_lock(root)) is not None:
        yield Finding(False, f"dvc.lock is whole, {len(entries)} stages")
    found += [f"{count} scratch folders of killed stages lie in {home}" for home, count in homes]
    yield from (Finding(True, f"{sentence}: run `restorelcc doctor --fix`") for sentence in found)
    layout = Layout(root)
    for sentence in (why_no_link(layout), *map(why_not_writable, (layout.data, layout.work))):
        if sentence:
            yield Finding(True, sentence)
    if layout.data.is_dir() and (home := scratch_home(layout, layout.data / "any")) != layout.work:
        yield Finding(False, f"data/ is on another file system: what is not finished lies in {home}")


def _scratch_homes(root: Path) -> list[Path]:
    from restorelcc.base.publish import SCRATCH

    layout = Layout(root)
    return [
        layout.work,
        *(home for home in (layout.data / SCRATCH, *layout.data.glob(f"*/{SCRATCH}")) if home.is_dir()),
    ]


def _left_work(params: Path) -> Iterator[Finding]:
    """What stages that ended early keep, and whether one of them may go on with it."""
    for work, known in _unfinished(params):
        text = f"{work.bytes / 2**20:,.1f} MiB of unfinished work lie in {work.folder}"
        end = "the next run of that stage goes on with it, or deletes it at its end"
        yield Finding(False, f"{text}: {end}" if known else f"{text}, of no model of {params.name}: {_DELETE}")


def _without_left_work(params: Path) -> Iterator[Finding]:
    """Delete the work of models that params.yaml does not have; a line for each. A cell outside the grid may have been
    asked for by hand, and its next run goes on with what it finds."""
    from restorelcc.base.unfinished import delete_unfinished

    for work, known in _unfinished(params):
        if not known and delete_unfinished(work):
            yield Finding(False, f"mended: {work.folder} is gone, unfinished work of no model of {params.name}")


def _unfinished(params: Path) -> Iterator[tuple[Unfinished, bool]]:
    """Work that stages left, each with whether it is of a model of params.yaml; so it is where no model can be read."""
    from restorelcc.base.unfinished import STAGES, unfinished
    from restorelcc.pipeline.params import load_params

    found = unfinished(Layout(project_of(params)))
    if not found:
        return
    try:
        models = load_params(params).models
    except BadInput:
        yield from ((work, True) for work in found)
        return
    cells = tuple(f"{stage}-{alias}-" for stage in STAGES.values() for alias in models)
    words = {f"models.{alias}" for alias in models}
    yield from ((work, work.name in words or f"{work.name}-".startswith(cells)) for work in found)


def _dvc(root: Path, deep: bool) -> Iterator[Finding]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

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
        yield from _cache(root) if deep else ()
        yield from _remote(repo)


def _altered(root: Path) -> list[Path]:
    from restorelcc.pipeline.remotes import altered_objects
    from restorelcc.pipeline.run_cache import opened

    with opened(root) as repo:
        return altered_objects(Path(repo.cache.local.path))


def _cache(root: Path) -> Iterator[Finding]:
    bad = _altered(root)
    for path in bad:
        yield Finding(
            True,
            f"{path} was altered, and a push would spread it: delete it by `restorelcc doctor --cache --fix`, then "
            "pull or compute it again",
        )
    if not bad:
        yield Finding(False, "every cached file has the digest that it is named by")


def _remote(repo: object) -> Iterator[Finding]:
    from restorelcc.pipeline.remotes import check_remote

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
    except (OSError, ValueError, http.client.HTTPException) as error:
        yield Finding(
            True, f"no Prefect server answers at {url} ({error}): `prefect server start`, or unset PREFECT_API_URL"
        )
