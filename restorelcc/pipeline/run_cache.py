"""Restore a project's results from a remote and the run-cache, stage by stage, without computing anything."""

from __future__ import annotations

import sys
from contextlib import chdir, suppress
from pathlib import Path
from typing import Any, NamedTuple

from restorelcc.base.documents import read_json, write_json
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.messages import note
from restorelcc.pipeline.inputs import STAGE as INPUTS
from restorelcc.pipeline.inputs import lay_out_what_is_here
from restorelcc.pipeline.params import load_params


def lost_files(root: Path) -> list[str]:
    """Outputs that dvc.lock names and the local cache lacks: after a fetch, those that the remote does not have."""
    from dvc.repo import lock_repo

    with opened(root) as repo, lock_repo(repo):
        return sorted(out.def_path for out in _not_here(repo))


def lost_for_all(root: Path, remote: str) -> list[str]:
    """Outputs that dvc.lock names and that neither the local cache nor the remote has."""
    from dvc.repo import lock_repo

    with opened(root) as repo, lock_repo(repo):
        lost = _not_here(repo)
        if not lost:  # then no remote is asked
            return []
        there = repo.cloud.get_remote_odb(remote)
        return sorted(out.def_path for out in lost if not there.exists(out.hash_info.value))


def _not_here(repo: Any) -> list[Any]:
    """Outputs that dvc.lock names and the local cache lacks."""
    outs = [out for stage in repo.index.stages for out in stage.outs]
    return [out for out in outs if out.use_cache and out.hash_info and out.changed_cache()]


def fetch_records(root: Path, remote: str) -> None:
    """Fetch the records of what others have run, without the files: each stage fetches those that it needs."""
    from dvc.repo import lock_repo

    with opened(root) as repo, lock_repo(repo):
        repo.stage_cache.pull(remote)


class Found(NamedTuple):
    """What `restore_from_cache` brought back: how many stages by their inputs, and how many as dvc.lock has them, for
    the files that they read are not on this machine; and the names of those that are left to compute."""

    restored: int
    as_locked: int
    missing: list[str]


def restore_from_cache(root: Path, remote: str, only: set[str] | None = None, download: bool = True) -> Found:
    """Check out every stage (or `only` some) that somebody ran with the same inputs. Before that, check out the files
    of `dvc add` that are not there, or there in an older version.

    `download`: files that are not in the local cache are fetched from the remote, stage by stage.
    """
    import networkx
    from dvc.exceptions import ConfirmRemoveError
    from dvc.repo import lock_repo
    from dvc.stage.cache import RunCacheNotFoundError

    restored: list[Any] = []
    as_locked: list[str] = []
    missing: list[str] = []
    # DVC looks for a run-cache entry's dvc.yaml in the working folder.
    with chdir(root), opened(Path()) as repo, lock_repo(repo):
        repo.config["core"]["remote"] = remote
        try:
            graph = repo.index.graph
            wanted = {stage for stage in graph if _is_asked_for(stage, only)}
            wanted.update(*(_sources(networkx.descendants(graph, stage)) for stage in list(wanted)))  # that they read
            lacking = _bring_sources(repo, _sources(wanted), remote if download else None)
            missing += [stage.addressing for stage in lacking]
            old = [Path(out.fs_path) for stage in lacking for out in stage.outs]
            for stage in reversed(list(networkx.topological_sort(graph))):
                if stage.is_data_source:
                    continue
                name = stage.addressing  # of a stage of this dvc.yaml, its name
                needs = {needed.addressing for needed in graph.successors(stage)}
                if needs.intersection(missing) or _links_to(stage, old):
                    missing.append(name)
                elif stage in wanted and stage.changed():
                    try:
                        if not name.startswith(f"{INPUTS}@"):
                            _restore(repo, stage, download)
                            restored.append(stage)
                        elif _record(stage):
                            restored.append(stage)
                        elif _entry_changed(stage):
                            missing.append(name)
                    except RunCacheNotFoundError:
                        missing.append(name)
                    except ConfirmRemoveError:
                        _note_in_the_way(stage)
                        missing.append(name)
                    except FileNotFoundError:  # of a file that nothing tracks
                        (as_locked if _check_out_as_locked(repo, stage) else missing).append(name)
        finally:
            _write_lock(restored)
    return Found(len(restored), len(as_locked), missing)


def _is_asked_for(stage: Any, only: set[str] | None) -> bool:
    """Whether a stage is one of `only`; without these, any of the project, and what is tracked in its folder."""
    if only is not None:
        return stage.addressing in only
    return not stage.is_data_source or Path(stage.path).resolve().is_relative_to(Path.cwd().resolve())


def _sources(stages: set[Any]) -> set[Any]:
    return {stage for stage in stages if stage.is_data_source}


def _bring_sources(repo: Any, stages: set[Any], remote: str | None) -> list[Any]:
    """Bring what `dvc add` or `dvc import` watches to the version that its .dvc file names; those where neither the
    cache nor the remote has it. What data/inputs links to is looked up again where files changed.

    remote: where files are fetched from, if they may be.
    """
    brought = {stage: _bring(repo, stage, remote) for stage in sorted(stages, key=lambda stage: stage.addressing)}
    if True in brought.values() and Path("params.yaml").is_file():
        lay_out_what_is_here(load_params(Path("params.yaml")), Layout(Path.cwd()), wait=False)
    return [stage for stage, done in brought.items() if done is None]


def _bring(repo: Any, stage: Any, remote: str | None) -> bool | None:
    """Whether anything was checked out; None where it would have to be and neither the cache nor the remote has it.

    Content that the cache has is another version, and is replaced. Any other is an edit, and stays.
    """
    from dvc.exceptions import DvcException

    there = all(out.exists for out in stage.outs)
    if there and not any(out.use_cache and out.hash_info and out.changed_checksum() for out in stage.outs):
        return False
    if remote and any(out.changed_cache() for out in stage.outs):
        with suppress(DvcException):
            repo.fetch([stage.addressing], remote=remote)
    names = ", ".join(str(out) for out in stage.outs)
    if any(out.changed_cache() for out in stage.outs):  # a checkout would delete what is there
        if there:
            note(f"{names} is not what {stage.addressing} names, and neither the cache nor the remote has that version")
        return None
    try:
        repo.checkout([stage.addressing])
    except DvcException:
        note(
            f"{names} was edited and stays as it is: `dvc add {names}` keeps the edit, "
            f"`dvc checkout --force {stage.addressing}` takes the version that {stage.addressing} names"
        )
        return False
    return True


def _links_to(stage: Any, paths: list[Path]) -> bool:
    """Whether a stage reads one of the paths through data/inputs, whose links are no edges of DVC's graph."""
    if not paths:
        return False
    home = Layout(Path.cwd()).data / INPUTS
    read = [path for dep in stage.deps if (path := Path(dep.fs_path)).is_relative_to(home)]
    links = [link.readlink() for path in read for link in (path, *path.glob("*")) if link.is_symlink()]
    return any(link.is_relative_to(path) or path.is_relative_to(link) for link in links for path in paths)


def _restore(repo: Any, stage: Any, download: bool) -> None:
    """As `dvc repro --pull` restores a stage, without pulling the whole run-cache again for each."""
    repo.stage_cache.restore(stage, pull=download)
    stage.save()
    stage.commit()


def _check_out_as_locked(repo: Any, stage: Any) -> bool:
    """Whether a stage's results could be checked out as dvc.lock has them: its command is what it was, and so is all
    that it reads and that is on this machine."""
    from dvc.exceptions import DvcException

    there = [dep for dep in stage.deps if dep.exists]
    if stage.changed_stage() or any(dep.changed() for dep in there) or not stage.outs_cached():
        return False
    try:
        repo.checkout([stage.addressing])
    except DvcException:  # something else is there that the cache does not have
        _note_in_the_way(stage)
        return False
    return True


def _note_in_the_way(stage: Any) -> None:
    """Say which outputs are others than those that would be checked out, and in no cache: DVC deletes none of these."""
    stage.save_outs(allow_missing=True)
    if names := ", ".join(str(out) for out in stage.outs if out.use_cache and out.exists and out.changed_cache()):
        note(
            f"{stage.addressing} is not restored, because the cache does not have {names} as it is here: "
            f"`dvc commit --force {stage.addressing}` keeps that; deleting it and pulling again brings the shared one"
        )


def _record(stage: Any) -> bool:
    """Note what lies under data/inputs, which was just made here; where it could not be, what dvc.lock has stays."""
    if not all(out.exists for out in stage.outs):
        return False
    stage.save()
    stage.commit()
    return True


def _entry_changed(stage: Any) -> bool:
    """Whether the entry of the model is another than the one that the results in dvc.lock are of."""
    from dvc.dependency import ParamsDependency

    changed = [dep.workspace_status() for dep in stage.deps if isinstance(dep, ParamsDependency)]
    return any(key.startswith("models.") for files in changed for keys in files.values() for key in keys)


def _write_lock(stages: list[Any]) -> None:
    """The entries of all stages at once: DVC parses and writes the whole of dvc.lock each time, in seconds."""
    for path, file in {stage.path: stage.dvcfile for stage in stages}.items():
        file.dump_stages([stage for stage in stages if stage.path == path], update_pipeline=False)


def opened(root: Path) -> Any:
    """DVC's repository. Raises BadInput where there is none, and for another folder of a project, from which DVC finds
    the repository too, but not the stages."""
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo

    if not root.is_dir():
        raise BadInput(f"--root {root} is not a folder: correct its path")
    try:
        repo = Repo(str(root.resolve()), _wait_for_lock=True)
    except NotDvcRepoError as error:
        raise BadInput(f"{root.resolve()} is not a DVC project: run in the project's folder or give --root") from error
    except DvcException as error:
        raise BadInput(f"DVC cannot open {root.resolve()}: {error}") from error
    if not Path(repo.root_dir).samefile(root) and not (root / "params.yaml").is_file():
        repo.close()
        raise BadInput(f"{root.resolve()} is a folder of the project {repo.root_dir}: run there, or give --root")
    return repo


def main() -> None:
    """What `watched.restored` asks for, in this process: a file with the request, and where what came of it goes."""
    asked = read_json(Path(sys.argv[1]))
    root, only = Path(asked["root"]), asked["only"]
    if asked["fetch"]:
        fetch_records(root, asked["remote"])
    found = restore_from_cache(root, asked["remote"], None if only is None else set(only))
    write_json(Path(sys.argv[2]), found._asdict())


if __name__ == "__main__":
    from restorelcc.base.ending import tell
    from restorelcc.base.processes import end_as_interrupted, end_with_parent

    try:
        end_as_interrupted()
        end_with_parent()
        main()
    except (Exception, KeyboardInterrupt) as error:
        raise SystemExit(tell(error)) from None
