"""The Hugging Face Hub: revisions become commits, files come into its cache, and every failure is one sentence.

Nothing here sees a token: huggingface_hub takes it from HF_TOKEN or from its own login. Weights stay in the hub's
cache (HF_HOME); a download that breaks off leaves whole files there and no part of one.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from restorelcc.base.documents import read_json
from restorelcc.base.errors import BadInput, StageFailed, first_line, is_disk_full
from restorelcc.base.weights import WHOLE, chosen_weights

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

Result = TypeVar("Result")
ATTEMPTS = 3  # of a request that a broken connection ended; huggingface_hub resumes within each
_BESIDE = (".json", ".jinja", ".model", ".txt")  # config, tokenizer, chat template
_NOT_NEEDED = ("LICENSE.txt", "NOTICE.txt", "USE_POLICY.txt", "consolidated.safetensors", "adapter_config.json")


@dataclass(frozen=True)
class Repository:
    """A repository as params.yaml names it; `key` is where."""

    key: str
    name: str
    kind: str = "model"  # or "dataset"

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def resolved_commit(repository: Repository, revision: str | None) -> str:
    """The commit that a branch, tag or commit means now; offline, what it meant when the hub was last asked.

    Raises BadInput if the hub does not have it or refuses it, StageFailed when the hub cannot be asked.
    """
    from huggingface_hub import HfApi

    return _asked(
        repository,
        lambda: str(HfApi().resolve_revision(repository.name, revision=revision, repo_type=repository.kind).resolved),
        wanted=f"revision {revision or 'main'!r}",
    )


def model_files(repository: Repository, commit: str) -> dict[str, tuple[str, int]]:
    """Name to (content id, bytes) of the files of a checkpoint that are needed: safetensors weights, config, tokenizer.

    Raises BadInput when the repository holds no safetensors weights, or those of two models.
    """
    listed = _listing(repository, commit)
    if not any(name.endswith(".safetensors") for name in listed):
        if is_offline() and _tree(repository, commit) is None:  # nobody knows what else it holds
            raise _not_cached(repository, commit, WHOLE)
        pickled = next((name for name in listed if name.endswith((".bin", ".pt", ".pth"))), None)
        why = f"only {pickled}, a pickle, which is never loaded" if pickled else f"but {', '.join(sorted(listed)[:4])}"
        raise BadInput(
            f"{repository.key}: the {repository} holds no safetensors weights, {why}: give a revision that has them "
            "(pull requests of the hub's converter are revisions, refs/pr/<n>), or a converted copy as a folder"
        )
    weights = chosen_weights(
        f"{repository.key}: the {repository}",
        listed,
        lambda name: read_json(_fetched(repository, commit, [name]) / name, tagged=True),
    )
    return {name: listed[name] for name in sorted({*weights.names, *filter(_is_beside, listed)})}


def _is_beside(name: str) -> bool:
    return name.endswith(_BESIDE) and name not in _NOT_NEEDED


def fetch_model(repository: Repository, commit: str) -> Path:
    """The folder of the hub's cache with a model's files at a commit; what is missing is downloaded.

    Raises BadInput or StageFailed, as resolved_commit; offline, BadInput names the first file that is missing.
    """
    return _fetched(repository, commit, list(model_files(repository, commit)))


def fetch_config(repository: Repository, commit: str) -> Path:
    """Like fetch_model, with the config alone."""
    return _fetched(repository, commit, ["config.json"])


def fetch_beside(repository: Repository, commit: str) -> Path:
    """Like fetch_model, without the weights: config and tokenizer."""
    return _fetched(repository, commit, [name for name in _listing(repository, commit) if _is_beside(name)])


def _fetched(repository: Repository, commit: str, names: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    missing = [name for name in names if _cached(repository, commit, name) is None]
    folder = cached_snapshot(repository, commit)
    if not missing and folder is not None:
        return folder
    if is_offline():
        raise _not_cached(repository, commit, next(iter(missing), "config.json"))
    listed = _listing(repository, commit)
    if absent := [name for name in names if name not in listed]:
        held = f", but {', '.join(sorted(listed)[:4])}" if listed else ""
        raise BadInput(
            f"{repository.key}: the {repository} holds no {absent[0]}{held}: give a repository or a revision of a "
            "whole checkpoint; of an adapter, one that it is merged into; of GGUF files, the path of a downloaded one"
        )
    _check_space(repository, sum(listed[name][1] for name in missing))
    return _asked(
        repository,
        lambda: Path(snapshot_download(repository.name, revision=commit, allow_patterns=names)),
        wanted=f"commit {commit[:12]}",
    )


def cached_snapshot(repository: Repository, commit: str) -> Path | None:
    """The folder of the hub's cache with the files of a repository that it has at a commit; None when it has none."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    name = repo_folder_name(repo_id=repository.name, repo_type=repository.kind)
    folder = Path(constants.HF_HUB_CACHE) / name / "snapshots" / commit
    return folder if folder.is_dir() else None


def licence_of(repository: Repository, commit: str) -> str | None:
    """The licence its card declares; None when it declares none or the network is forbidden."""
    from huggingface_hub import HfApi

    if is_offline():
        return None
    info = _asked(
        repository,
        lambda: HfApi().repo_info(repository.name, revision=commit, repo_type=repository.kind),
        wanted="its card",
    )
    licence = (getattr(info, "card_data", None) or {}).get("license")
    return ", ".join(licence) if isinstance(licence, list) else licence


def _listing(repository: Repository, commit: str) -> dict[str, tuple[str, int]]:
    """Files in the root of a repository; from the cache's own listing of the commit where there is one. Offline and
    without it (an older huggingface_hub wrote none, nor does a download of single files), those that are cached."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    entries = _tree(repository, commit)
    if entries is None and is_offline():
        if found := _files_in_cache(cached_snapshot(repository, commit)):
            return found
        raise _not_cached(repository, commit, "config.json")
    if entries is None:
        entries = _asked(
            repository,
            lambda: [
                entry
                for entry in HfApi().list_repo_tree(repository.name, revision=commit, repo_type=repository.kind)
                if isinstance(entry, RepoFile)
            ],
            wanted=f"commit {commit[:12]}",
        )
    return {entry.path: (entry.blob_id, entry.size) for entry in entries if "/" not in entry.path}


def _tree(repository: Repository, commit: str) -> list[RepoFile] | None:
    """The cache's own listing of a commit; None where it has none."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return list(get_cached_repo_tree(repository.name, revision=commit, repo_type=repository.kind))
    except CachedRepoTreeNotFoundError:
        return None


def _files_in_cache(folder: Path | None) -> dict[str, tuple[str, int]]:
    """Name to (content id, bytes) of the files in a snapshot folder, as the hub lists them.

    Each is a link to a blob whose name is the id that git gives the content, or, of a large file, its SHA-256. The hub
    lists a large file by the id of the pointer that git has in its place, the SHA-1 of a short header and the pointer.
    """
    found = {}
    for path in sorted(folder.iterdir()) if folder is not None else ():
        if not (path.is_symlink() and path.is_file()):
            continue
        name, size = path.readlink().name, path.stat().st_size
        if len(name) == 64:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{name}\nsize {size}\n"
            name = hashlib.sha1(f"blob {len(pointer)}\0{pointer}".encode()).hexdigest()
        found[path.name] = name, size
    return found


def _cached(repository: Repository, commit: str, name: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository.name, name, revision=commit, repo_type=repository.kind)
    return found if isinstance(found, str) else None


def _not_cached(repository: Repository, commit: str, name: str) -> BadInput:
    return BadInput(
        f"{repository.key}: HF_HUB_OFFLINE is set and {name} of the {repository} at commit {commit[:12]} is not in the "
        "hub's cache: run once with the network, or copy the cache (HF_HOME) from a machine that has it"
    )


def _check_space(repository: Repository, needed: int) -> None:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise StageFailed(
            f"{repository.key}: the {repository} needs {needed / 1e6:,.0f} MB in {cache}, where {free / 1e6:,.0f} MB "
            "are free: make room, or set HF_HOME to a larger disk"
        )


def _asked(repository: Repository, ask: Callable[[], Result], wanted: str) -> Result:
    """What the hub answers; a broken connection is tried again, every other failure is one sentence."""
    import httpx2
    from huggingface_hub.errors import RevisionResolutionError, XetDownloadError

    _check_id(repository)
    expected = (httpx2.HTTPError, OSError, ValueError, RuntimeError, RevisionResolutionError, XetDownloadError)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return ask()
        except expected as error:
            broken = isinstance(error, httpx2.TransportError) or isinstance(error.__cause__, httpx2.TransportError)
            if not broken or is_offline() or attempt == ATTEMPTS:
                raise _explained(repository, error, wanted) from error
            time.sleep(attempt)
    raise AssertionError("unreachable")


def _check_id(repository: Repository) -> None:
    """Raises BadInput for a path: callers ask the hub for sources that are no folders; an id has at most one slash."""
    name, key = repository.name, repository.key
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        where = f"{key}.source" if repository.kind == "model" and not key.endswith("source") else key
        raise BadInput(
            f"{where} is {name!r}, which is not a folder: correct the path, or give an id of the hub, <owner>/<name>"
        )


def _explained(repository: Repository, error: Exception, wanted: str) -> BadInput | StageFailed:
    """The sentence for a failure: BadInput if the user can correct it, StageFailed for the hub and the disk."""
    from huggingface_hub import constants, errors

    key, what, endpoint = repository.key, repository, constants.ENDPOINT
    wrapped = errors.RevisionResolutionError | errors.LocalEntryNotFoundError
    if isinstance(error, wrapped) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError):
        why = "your token has no access to it" if status == 403 else "no token was sent"
        return BadInput(
            f"{key}: the {what} is gated and {why}: accept its terms at {endpoint}/{what.name}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return BadInput(f"{key}: the {what} has no {wanted}: name a branch, tag or commit that it has")
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return BadInput(
            f"{key}: {endpoint} has no {what}, or it is private: check the id (a folder must exist), or log in with "
            "`hf auth login` or HF_TOKEN"
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return BadInput(f"{key}: the {what} has no file {wanted}: check the id and the revision")
    if status in (401, 403):
        return BadInput(
            f"{key}: the hub refuses your token for the {what} ({status}): log in again with `hf auth login`, or "
            "correct HF_TOKEN"
        )
    if is_disk_full(error):
        return StageFailed(
            f"{key}: the disk became full while the {what} was being fetched to {constants.HF_HUB_CACHE}: make room or "
            "set HF_HOME to a larger disk, then run again; files that are complete are kept"
        )
    if is_offline():
        return BadInput(
            f"{key}: HF_HUB_OFFLINE is set and {wanted} of the {what} is not in the hub's cache: run once with the "
            "network, or copy the cache (HF_HOME) from a machine that has it"
        )
    if status is not None:
        return StageFailed(f"{key}: {endpoint} answers {status} for the {what}: run again later")
    return StageFailed(
        f"{key}: the connection to {endpoint} failed for the {what} ({type(error).__name__}: {first_line(error)}): "
        "check the network and run again; files that are complete are kept"
    )
