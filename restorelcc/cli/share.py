"""`restorelcc share`, `push` and `pull`: a remote for the team, and results to and from it. Thin over dvc."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path
from typing import Annotated, Any

import typer

from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.layout import Layout
from restorelcc.pipeline.inputs import STAGE as INPUTS
from restorelcc.pipeline.inputs import lay_out_what_is_here
from restorelcc.pipeline.lockfile import heal
from restorelcc.pipeline.params import load_params
from restorelcc.pipeline.remotes import add_remote, check_remote, dvc, remote_name

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
    """Write the remote into .dvc/config, and see that it answers."""
    repo = _repo(root)
    with repo:
        add_remote(root, name, url, endpoint)
    with _repo(root) as repo:
        check_remote(repo, name)
    typer.echo(f"remote {name!r} is {url}: commit .dvc/config, then `restorelcc push`", err=True)


def push(remote: RemoteOption = None, root: RootOption = Path()) -> None:
    """Everything that dvc.lock and the run-cache refer to; what the remote has already is not sent again."""
    with _repo(root) as repo:
        name = remote_name(repo.config, remote)
        check_remote(repo, name)
        mend(repo, root)
    if dvc(root, "push", "--run-cache", "--remote", name):
        raise StageFailed("the push did not complete: run it again, what has arrived is not sent again")
    typer.echo("pushed; commit and push dvc.lock too, so that others see the same results", err=True)


def pull(remote: RemoteOption = None, root: RootOption = Path()) -> None:
    """Fetch what dvc.lock names and the run-cache, then bring back every stage whose inputs somebody has run."""
    with _repo(root) as repo:
        name = remote_name(repo.config, remote)
        check_remote(repo, name)
        mend(repo, root)
    if (root / "params.yaml").is_file():
        for absent in lay_out_what_is_here(load_params(root / "params.yaml"), Layout(root.resolve())):
            typer.echo(f"restorelcc: note: {absent}", err=True)
    fetched = dvc(root, "fetch", "--run-cache", "--remote", name) == 0
    # With the connection gone, asking for every stage's files would only wait for as many timeouts.
    answers = fetched or _answers(root, name)
    lost = _lost(root)
    restored, missing = restore_from_cache(root, name, download=answers)
    typer.echo(f"{restored} stages restored, {len(missing)} left to compute", err=True)
    if answers and lost:
        raise StageFailed(
            f"{len(lost)} files of dvc.lock are missing or damaged in the remote, the first is {lost[0]}: have "
            "somebody who has them push again, or compute them by `dvc repro`"
        )
    if not fetched:
        raise StageFailed("the pull did not complete, see above: run it again, what has arrived is not sent again")


def _answers(root: Path, remote: str) -> bool:
    try:
        with _repo(root) as repo:
            check_remote(repo, remote)
    except BadInput:
        return False
    return True


def _lost(root: Path) -> list[str]:
    """Outputs that dvc.lock names and the local cache lacks: after a fetch, what the remote could not give."""
    from dvc.repo import lock_repo

    with _repo(root) as repo, lock_repo(repo):
        outs = [out for stage in repo.index.stages for out in stage.outs]
        return sorted(out.def_path for out in outs if out.use_cache and out.hash_info and out.changed_cache())


def mend(repo: Any, root: Path) -> None:
    """Heal dvc.lock, and say so."""
    from dvc.repo import lock_repo

    with lock_repo(repo):
        if said := heal(root):
            typer.echo(said, err=True)


def restore_from_cache(
    root: Path, remote: str, only: set[str] | None = None, download: bool = True
) -> tuple[int, list[str]]:
    """Check out every stage (or `only` some) that somebody ran with the same inputs: how many; names of the others.

    `download`: files that are not in the local cache are fetched from the remote, stage by stage.
    """
    import networkx
    from dvc.repo import lock_repo
    from dvc.stage.cache import RunCacheNotFoundError

    restored: list[Any] = []
    missing: list[str] = []
    # DVC looks for a run-cache entry's dvc.yaml in the working folder.
    with chdir(root), _repo(Path()) as repo, lock_repo(repo):
        repo.config["core"]["remote"] = remote
        try:
            for stage in reversed(list(networkx.topological_sort(repo.index.graph))):
                needs = {needed.name for needed in repo.index.graph.successors(stage)}
                if needs.intersection(missing):
                    missing.append(stage.name)
                elif (only is None or stage.name in only) and stage.changed():
                    try:
                        if stage.name.startswith(f"{INPUTS}@"):
                            _record(stage)
                        else:
                            _restore(repo, stage, download)
                        restored.append(stage)
                    except RunCacheNotFoundError:
                        missing.append(stage.name)
        finally:
            _write_lock(restored)
    return len(restored), missing


def _restore(repo: Any, stage: Any, download: bool) -> None:
    """As `dvc repro --pull` restores a stage, without pulling the whole run-cache again for each."""
    repo.stage_cache.restore(stage, pull=download)
    stage.save()
    stage.commit()


def _record(stage: Any) -> None:
    """Note what lies under data/inputs, which was just made here; where it could not be, what dvc.lock has stays."""
    if all(out.exists for out in stage.outs):
        stage.save()
        stage.commit()


def _write_lock(stages: list[Any]) -> None:
    """The entries of all stages at once: DVC parses and writes the whole of dvc.lock each time, in seconds."""
    for path, file in {stage.path: stage.dvcfile for stage in stages}.items():
        file.dump_stages([stage for stage in stages if stage.path == path], update_pipeline=False)


def _repo(root: Path) -> Any:
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo

    try:
        return Repo(str(root.resolve()), _wait_for_lock=True)
    except NotDvcRepoError as error:
        raise BadInput(f"{root.resolve()} is no DVC project: run in the project's folder or give --root") from error
    except DvcException as error:
        raise BadInput(f"DVC cannot open {root.resolve()}: {error}") from error
