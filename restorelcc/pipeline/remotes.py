"""The team's remote: which one it is, whether it answers, and the message if not. No credentials are read here."""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.names import check_without_credentials
from restorelcc.base.publish import why_not_writable
from restorelcc.pipeline.lockfile import file_md5

_HOW = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) in the environment",
    "ssh": "load your key into ssh-agent, or name it for this host in ~/.ssh/config",
    "local": "check the folder's owner and permissions",
}
_DENIED = re.compile(
    r"credential|permission|denied|forbidden|InvalidAccessKeyId|SignatureDoesNotMatch|authenticat|token",
    re.IGNORECASE,
)
# Seconds to connect and to wait for a block; `dvc remote modify` sets others.
_TIMEOUTS = {"s3": {"connect_timeout": "10", "read_timeout": "15"}, "ssh": {"timeout": "15"}, "local": {}}
FOR_THE_GROUP = 0o002  # umask with which a group may write what is made in its folder
_LEAST_ROOM = 2**20  # bytes; a disk with less counts as full
_PROBE = b"written by restorelcc share, to see that it can be\n"
_SECRETS = ("access_key_id", "secret_access_key", "session_token", "password", "passphrase")


def check_url(url: str) -> str:
    """A folder, s3://bucket/path or ssh://host/path, free of credentials. Raises BadInput; returns the scheme."""
    if not url.strip():
        raise BadInput("the remote has no address: give a folder, s3://bucket/path or ssh://host/path")
    parts = urlsplit(url)
    scheme = parts.scheme or "local"
    check_without_credentials("the remote's address", url)
    if scheme not in _HOW:
        raise BadInput(f"a remote at {scheme}:// is not supported: give a folder, s3://bucket/path or ssh://host/path")
    if scheme != "local" and not (parts.hostname and (scheme == "ssh" or parts.netloc)):
        raise BadInput(f"{url!r} names no {'bucket' if scheme == 's3' else 'host'}: write {scheme}://name/path")
    if scheme != "local" and importlib.util.find_spec(f"dvc_{scheme}") is None:
        raise BadInput(f"a remote at {scheme}:// needs dvc-{scheme}: pip install 'restorelcc[{scheme}]'")
    return scheme


def patience() -> float:
    """Seconds in which a remote must answer; RESTORELCC_REMOTE_SECONDS sets it. Raises BadInput."""
    text = os.environ.get("RESTORELCC_REMOTE_SECONDS", "30")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise BadInput(f"RESTORELCC_REMOTE_SECONDS is {text!r}: give a number of seconds, for example 30")
    return seconds


def add_remote(root: Path, name: str, url: str, endpoint: str | None) -> None:
    """Make `url` the default remote, verified on every download, in .dvc/config, once it was written to and read from.

    Raises BadInput where it cannot be used; .dvc/config is as it was then.
    """
    from dvc.config import Config
    from dvc.repo import Repo

    scheme = check_url(url)
    check_without_credentials("--endpoint", endpoint or "")
    if endpoint and scheme != "s3":
        raise BadInput("--endpoint is the address of an S3 server: leave it out for a folder or SSH")
    if scheme == "local":
        _check_apart(root, Path(url).expanduser())
    settings = {"verify": "true"} | _TIMEOUTS[scheme] | ({"endpointurl": endpoint} if endpoint else {})
    place = str((root / Path(url).expanduser()).resolve()) if scheme == "local" else url
    if scheme == "local" and Path(place).is_dir() and Path(place).stat().st_mode & stat.S_IWGRP:
        settings["shared"] = "group"  # else the second person cannot write into folders that the first one made
    with Repo(str(root.resolve())) as repo:
        # As `dvc remote add --force` leaves it: an earlier remote of this name is gone, but for .dvc/config.local.
        own = repo.config.load_one("local")["remote"].get(name, {})
        repo.config["remote"] |= Config.validate({"remote": {name: {"url": place} | settings | own}})["remote"]
        check_remote(repo, name, new=True)
        before = os.umask(FOR_THE_GROUP) if "shared" in settings else None
        try:
            _within(patience(), name, url, scheme, lambda: _probe(repo.cloud.get_remote_odb(name)))
        finally:
            if before is not None:
                os.umask(before)
    # A folder by its whole path: clones of the project lie elsewhere.
    command = ("remote", "add", "--quiet", "--force", "--default", name, place)
    add = [sys.executable, "-m", "dvc", "--wait-for-lock", *command]
    if subprocess.run(add, cwd=root, stdin=subprocess.DEVNULL, check=False).returncode:
        raise StageFailed(f"dvc {' '.join(command)} failed, see above")
    with Repo(str(root.resolve())) as repo, repo.config.edit("repo") as config:
        config["remote"][name] |= settings


def _check_apart(root: Path, folder: Path) -> None:
    """Raises BadInput for a remote in the project: a folder that goes with it keeps nothing safe."""
    place = (root / folder).resolve()
    own = [root.resolve() / name for name in ("data", ".dvc", ".git", ".work")]
    if place == root.resolve() or any(place == path or path in place.parents for path in own):
        raise BadInput(f"{place} is the project's own folder: give one outside of it, which all can reach")


def _probe(odb: Any) -> None:
    """Write a small file, read it, and delete it. Raises what the remote's library raises."""
    name = odb.fs.join(odb.path, f".restorelcc-probe-{os.getpid()}-{secrets.token_hex(4)}")
    odb.fs.makedirs(odb.path, exist_ok=True)
    odb.fs.pipe_file(name, _PROBE)
    try:
        if odb.fs.cat_file(name) != _PROBE:
            raise OSError("what was written there came back as something else")
    finally:
        odb.fs.remove(name)


def altered_objects(cache: Path) -> list[Path]:
    """Files of a DVC cache whose content has not the digest that they are named by; a push would spread them."""
    files = [path for path in sorted(cache.glob("??/*")) if path.is_file() and not path.name.endswith(".tmp")]
    return [path for path in files if file_md5(path) != path.parent.name + path.name.removesuffix(".dir")]


def remote_name(config: dict[str, Any], asked: str | None) -> str:
    """The remote asked for, else the default one. Raises BadInput where there is none."""
    known = list(config.get("remote", {}))
    name = asked or config.get("core", {}).get("remote")
    if not name:
        raise BadInput("no remote is configured: run `restorelcc share URL` with a folder, s3://... or ssh://...")
    if name not in known:
        raise BadInput(f"remote {name!r} is unknown: known are {', '.join(map(repr, known)) or 'none'}")
    return str(name)


def check_remote(
    repo: Any, name: str, seconds: float | None = None, *, new: bool = False, writes: bool = False
) -> None:
    """List the remote once, so that what is wrong is one sentence before anything is sent. Raises BadInput.

    seconds: that it may take; `patience()` by default. new: a folder may be missing, and is made; else it is taken for
    a disk that is not mounted. writes: a folder has to be one that can be written.
    """
    settings = repo.config["remote"][name]
    url = str(settings.get("url", ""))
    scheme = check_url(url)
    check_without_credentials(f"the endpointurl of remote {name!r}", str(settings.get("endpointurl", "")))
    tracked = repo.config.load_one("repo").get("remote", {}).get(name, {})
    if held := [key for key in _SECRETS if key in tracked]:
        raise BadInput(f"remote {name!r} has {held[0]} in .dvc/config, which git would keep: {_HOW[scheme]} instead")

    def look() -> None:
        odb = repo.cloud.get_remote_odb(name)
        if scheme == "local":
            _check_folder(Path(odb.path).parents[1], new=new, writes=writes)  # without files/md5
        else:
            _connect(str(settings.get("endpointurl", "")))
            _list(odb)

    _within(patience() if seconds is None else seconds, name, url, scheme, look)


def is_for_a_group(root: Path, name: str) -> bool:
    """Whether what is put into the remote is to be written by the folder's group too, as `add_remote` found it."""
    from dvc.repo import Repo

    with Repo(str(root.resolve())) as repo:
        return bool(repo.config["remote"][name].get("shared") == "group")


def full_remote(root: Path, name: str) -> str | None:
    """A sentence where the remote is a folder on a disk that is full."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        path = Path(repo.cloud.get_remote_odb(name).path)
    if not path.is_dir() or shutil.disk_usage(path).free >= _LEAST_ROOM:
        return None
    return f"the disk of {path} is full: make room, delete the unfinished files there (.*.tmp), and push again"


def _within(seconds: float, name: str, url: str, scheme: str, call: Callable[[], None]) -> None:
    """Call something that talks to a remote. Raises BadInput with what went wrong, or when it takes too long.

    Libraries have timeouts for a connection or a block, and try again: all together that is minutes. So the call has a
    thread of its own, which is left behind when it does not come back.
    """
    raised: list[Exception] = []

    def caught() -> None:
        try:
            call()
        except Exception as error:  # whatever the library of the remote raises, it says why it cannot be used
            raised.append(error)

    thread = threading.Thread(target=caught, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise BadInput(
            f"remote {name!r} ({url}) did not answer within {seconds:g} s: check the address and that the server runs; "
            "RESTORELCC_REMOTE_SECONDS sets how long to wait"
        )
    if raised and isinstance(raised[0], BadInput):
        raise raised[0]
    if raised:
        error = raised[0]
        said = " ".join(str(error).split()) or type(error).__name__
        denied = _DENIED.search(f"{type(error).__name__} {said}")
        what = _HOW[scheme] if denied or scheme == "local" else "check the address and that the server runs"
        raise BadInput(f"remote {name!r} ({url}) cannot be used ({said.rstrip('.')}): {what}") from error


def _check_folder(path: Path, *, new: bool, writes: bool) -> None:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing} is not a folder")
    if existing != path and not new:
        raise FileNotFoundError(f"{path} is not there; is its disk mounted? `restorelcc share {path}` makes it")
    inside = [*path.glob("files/md5"), *path.glob("files/md5/??"), *path.glob("runs"), *path.glob("runs/??")]
    for folder in [path, *inside] if writes else []:
        if reason := why_not_writable(folder):
            raise PermissionError(reason)


def _connect(endpoint: str) -> None:
    """Fail at once where nobody listens: the S3 library would try for a minute. Behind a proxy, leave it to that."""
    parts = urlsplit(endpoint)
    if parts.hostname and (parts.scheme not in getproxies() or proxy_bypass(parts.hostname)):
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=20).close()


def _list(odb: Any) -> None:
    try:
        odb.fs.ls(odb.path)
    except FileNotFoundError:
        # Nothing was ever pushed there; the bucket, or the host's root, must answer all the same.
        odb.fs.ls(odb.fs.parts(odb.path)[0])
