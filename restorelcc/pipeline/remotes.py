"""The team's remote: which one it is, whether it answers, and the message if not. No credentials are read here."""

from __future__ import annotations

import importlib.util
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.names import check_without_credentials

_HOW = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) in the environment",
    "ssh": "load your key into ssh-agent, or name it for this host in ~/.ssh/config",
    "local": "check the folder's owner and permissions",
}
_DENIED = re.compile(
    r"credential|permission|denied|forbidden|InvalidAccessKeyId|SignatureDoesNotMatch|authenticat|token",
    re.IGNORECASE,
)
_SECRETS = ("access_key_id", "secret_access_key", "session_token", "password", "passphrase")


def check_url(url: str) -> str:
    """A folder, s3://bucket/path or ssh://host/path, free of credentials. Raises BadInput; returns the scheme."""
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


def dvc(root: Path, *arguments: str) -> int:
    """Run a dvc command, its output shown as it comes; its exit code."""
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]
    return subprocess.run(command, cwd=root, stdin=subprocess.DEVNULL, check=False).returncode


def add_remote(root: Path, name: str, url: str, endpoint: str | None) -> None:
    """Make `url` the default remote, verified on every download, in .dvc/config."""
    scheme = check_url(url)
    check_without_credentials("--endpoint", endpoint or "")
    if endpoint and scheme != "s3":
        raise BadInput("--endpoint is the address of an S3 server: leave it out for a folder or SSH")
    settings = [("verify", "true"), *([("endpointurl", endpoint)] if endpoint else [])]
    commands: list[tuple[str, ...]] = [("remote", "add", "--quiet", "--force", "--default", name, url)]
    commands += [("remote", "modify", "--quiet", name, key, value) for key, value in settings]
    for command in commands:
        if dvc(root, *command):
            raise StageFailed(f"dvc {' '.join(command)} failed, see above")


def remote_name(config: dict[str, Any], asked: str | None) -> str:
    """The remote asked for, else the default one. Raises BadInput where there is none."""
    known = list(config.get("remote", {}))
    name = asked or config.get("core", {}).get("remote")
    if not name:
        raise BadInput("no remote is configured: run `restorelcc share URL` with a folder, s3://... or ssh://...")
    if name not in known:
        raise BadInput(f"remote {name!r} is unknown: known are {', '.join(map(repr, known)) or 'none'}")
    return str(name)


def check_remote(repo: Any, name: str) -> None:
    """List the remote once, so that what is wrong is one sentence before anything is sent. Raises BadInput."""
    settings = repo.config["remote"][name]
    url = str(settings.get("url", ""))
    scheme = check_url(url)
    check_without_credentials(f"the endpointurl of remote {name!r}", str(settings.get("endpointurl", "")))
    tracked = repo.config.load_one("repo").get("remote", {}).get(name, {})
    if held := [key for key in _SECRETS if key in tracked]:
        raise BadInput(f"remote {name!r} has {held[0]} in .dvc/config, which git would keep: {_HOW[scheme]} instead")
    try:
        odb = repo.cloud.get_remote_odb(name)
        if scheme == "local":
            _check_folder(Path(odb.path))
        else:
            _connect(str(settings.get("endpointurl", "")))
            _list(odb)
    except BadInput:
        raise
    except Exception as error:  # whatever the library of the remote raises, it says why the remote cannot be used
        said = " ".join(str(error).split()) or type(error).__name__
        denied = _DENIED.search(f"{type(error).__name__} {said}")
        what = _HOW[scheme] if denied else "check the address and that the server runs"
        raise BadInput(f"remote {name!r} ({url}) cannot be used ({said.rstrip('.')}): {what}") from error


def _check_folder(path: Path) -> None:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing} is not a folder")


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
