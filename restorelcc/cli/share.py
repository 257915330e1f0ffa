"""`restorelcc share`, `push` and `pull`: a remote for the team, and results to and from it. Thin over dvc."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.layout import Layout
from restorelcc.base.messages import note, say

RootOption = Annotated[Path, typer.Option("--root", help="the project's folder")]
RemoteOption = Annotated[str | None, typer.Option("--remote", "-r", help="a remote other than the default one")]


def add(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command("share", help="Make a folder, s3://bucket/path or ssh://host/path the team's remote.")(share)
    app.command("push", help="Send results and the run-cache to the remote, so that nobody computes them again.")(push)
    app.command("pull", help="Fetch results from the remote, with or without a dvc.lock; computes nothing.")(pull)


def share(
    url: Annotated[str, typer.Argument(help="a folder, s3://bucket/path or ssh://user@host/path")],
    name: Annotated[str, typer.Option(help="what to call the remote")] = "share",
    endpoint: Annotated[str | None, typer.Option(help="address of an S3 server other than Amazon's")] = None,
    root: RootOption = Path(),
) -> None:
    """Write to the remote and read from it; when that works, put it into .dvc/config."""
    from restorelcc.pipeline.remotes import add_remote
    from restorelcc.pipeline.run_cache import opened

    opened(root).close()
    add_remote(root, name, url, endpoint)
    say(f"remote {name!r} is {url}: commit .dvc/config, then `restorelcc push`")


def push(remote: RemoteOption = None, root: RootOption = Path()) -> None:
    """Everything that dvc.lock and the run-cache refer to; what the remote has already is not sent again."""
    from restorelcc.pipeline.remotes import altered_objects, check_remote, full_remote, remote_name
    from restorelcc.pipeline.run_cache import lost_for_all, opened
    from restorelcc.pipeline.watched import dvc
    from restorelcc.pipeline.workspace import mend

    for sentence in mend(root):
        say(sentence)
    with opened(root) as repo:
        name = remote_name(repo.config, remote)
        check_remote(repo, name, writes=True)
        if altered := altered_objects(Path(repo.cache.local.path)):
            raise StageFailed(
                f"{altered[0]} was altered on this disk, and a push would spread it ({len(altered)} such files): run "
                "`restorelcc doctor --cache --fix`, then `dvc repro`, then push again"
            )
    _note_edits(root)
    if dvc(root, "push", "--run-cache", "--remote", name, remote=name):
        if full := full_remote(root, name):
            raise StageFailed(f"the push did not complete: {full}")
        raise StageFailed("the push did not complete: run it again, what has arrived is not sent again")
    if lost := lost_for_all(root, name):  # of which DVC only warns
        raise StageFailed(
            f"{len(lost)} files of dvc.lock are neither here nor in the remote, the first is {lost[0]}: make them anew "
            "by `dvc repro`, then push again; all others were pushed"
        )
    say("pushed; commit and push dvc.lock too, so that others see the same results")


def _note_edits(root: Path) -> None:
    """Say which files of `dvc add` others would get in another version than the one that is here."""
    from restorelcc.pipeline.inputs import edited_sources
    from restorelcc.pipeline.params import load_params

    with suppress(BadInput):  # of params.yaml, which a push does not need
        for sentence in edited_sources(load_params(root / "params.yaml"), Layout(root.resolve())):
            note(sentence)


def pull(remote: RemoteOption = None, root: RootOption = Path()) -> None:
    """Fetch what dvc.lock names and the run-cache, then bring back every stage whose inputs somebody has run."""
    from restorelcc.pipeline.inputs import lay_out_what_is_here
    from restorelcc.pipeline.params import load_params
    from restorelcc.pipeline.remotes import check_remote, remote_name
    from restorelcc.pipeline.run_cache import lost_files, opened, restore_from_cache
    from restorelcc.pipeline.watched import dvc, restored
    from restorelcc.pipeline.workspace import mend

    for sentence in mend(root):
        say(sentence)
    with opened(root) as repo:
        name = remote_name(repo.config, remote)
        check_remote(repo, name)
    params = load_params(root / "params.yaml") if (root / "params.yaml").is_file() else None
    if params is not None:
        lay_out_what_is_here(params, Layout(root.resolve()))
    fetch = ("fetch", "--run-cache", "--remote", name)
    fetched = dvc(root, *fetch, remote=name) == 0
    # With the connection gone, asking for every stage's files would only wait for as many timeouts.
    answers = fetched or _answers(root, name)
    if answers and not fetched:  # one connection was cut, or there are files that the remote does not have
        fetched = dvc(root, *fetch, remote=name) == 0
    found = restored(root, name) if answers else restore_from_cache(root, name, download=False)
    if params is not None:
        for sentence in lay_out_what_is_here(params, Layout(root.resolve())):  # with files of `dvc add`, here by now
            note(sentence)
    locked = f"{found.as_locked} as dvc.lock has them, " if found.as_locked else ""
    say(f"{found.restored} stages restored, {locked}{len(found.missing)} left to compute")
    if answers and (lost := lost_files(root)):
        raise StageFailed(
            f"{len(lost)} files of dvc.lock are missing or damaged in the remote, or could not be written here (see "
            f"above), the first is {lost[0]}: have somebody who has them push again, or compute them by `dvc repro`"
        )
    if not fetched:
        raise StageFailed("the pull did not complete, see above: run it again, what has arrived is not sent again")


def _answers(root: Path, remote: str) -> bool:
    from restorelcc.pipeline.remotes import check_remote
    from restorelcc.pipeline.run_cache import opened

    try:
        with opened(root) as repo:
            check_remote(repo, remote)
    except BadInput:
        return False
    return True
