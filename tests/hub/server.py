"""A hub on loopback: the part of the Hugging Face Hub's HTTP protocol that huggingface_hub and datasets use to read.

    with LoopbackHub() as hub:
        commit = hub.add_model("org/name", folder_files(folder))
        ...  # with HF_ENDPOINT=hub.endpoint

Spoken: model and dataset info (by branch or commit), tree, paths-info, resolve with HEAD, GET, ETag, commit header and
byte ranges, errors with X-Error-Code. Large files are described as the hub's large file storage describes them; there
is no xet storage, so clients download over plain HTTP.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.faults import Fault, Faults
from tests.hub.repositories import Content, Repository, StoredFile, is_large

_NAME = r"(?P<name>[^/]+/[^/]+)"
_API = re.compile(rf"/api/(?P<kind>models|datasets)/{_NAME}(?:/(?P<verb>revision|tree|paths-info)/(?P<rest>.+))?")
_RESOLVE = re.compile(rf"/(?P<dataset>datasets/)?{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass(frozen=True)
class Request:
    """One request as the hub saw it."""

    method: str
    path: str
    token: str | None
    range: str | None


class LoopbackHub:
    """Repositories behind a server on a free port of 127.0.0.1, started and stopped as a context manager."""

    def __init__(self, port: int = 0) -> None:
        self.faults = Faults()
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.accepted_tokens: set[str] = set()  # that may read gated repositories
        self.requests: list[Request] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add_model(self, name: str, files: Mapping[str, Content], **options: Any) -> str:
        """Add a model repository with one commit on main; returns the commit."""
        return self._add("model", name, files, **options)

    def add_dataset(self, name: str, files: Mapping[str, Content], **options: Any) -> str:
        """Add a dataset repository with one commit on main; returns the commit."""
        return self._add("dataset", name, files, **options)

    def model(self, name: str) -> Repository:
        return self.repositories["model", name]

    def dataset(self, name: str) -> Repository:
        return self.repositories["dataset", name]

    def _add(self, kind: str, name: str, files: Mapping[str, Content], **options: Any) -> str:
        repository = Repository(kind, name, **options)
        self.repositories[kind, name] = repository
        return repository.commit(files)

    def __enter__(self) -> LoopbackHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Refused(Exception):
    def __init__(self, status: int, code: str | None, message: str, commit: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.commit = status, code, message, commit


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.requests.append(Request(self.command, path, token, self.headers.get("Range")))
        fault = self.hub.faults.take(self.command, path)
        try:
            if fault is not None and fault.kind == "status":
                raise _Refused(fault.status, fault.code, f"told to answer {fault.status}")
            if fault is not None and fault.kind == "silent":
                self.close_connection = True
                return
            if found := _API.fullmatch(path):
                self._send_json(self._api(found, parse_qs(url.query), body, token))
            elif found := _RESOLVE.fullmatch(path):
                self._resolve(found, token, fault)
            else:
                raise _Refused(404, None, f"the loopback hub does not know {path}")
        except _Refused as refusal:
            self._refuse(refusal)

    def _repository(self, kind: str, name: str, token: str | None) -> Repository:
        repository = self.hub.repositories.get((kind, name))
        if repository is None:
            # As the hub does it: who is not logged in is not told what exists.
            raise _Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        return repository

    def _allowed(self, repository: Repository, token: str | None) -> None:
        if repository.gated and token not in self.hub.accepted_tokens:
            raise _Refused(403 if token else 401, "GatedRepo", f"Access to {repository.name} is restricted")

    def _commit(self, repository: Repository, revision: str | None) -> str:
        commit = repository.resolve(revision)
        if commit is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _api(self, found: re.Match[str], query: dict[str, list[str]], body: bytes, token: str | None) -> Any:
        repository = self._repository(found["kind"].removesuffix("s"), found["name"], token)
        verb, rest = found["verb"], found["rest"] or ""
        if verb in (None, "revision"):
            commit = self._commit(repository, rest or None)
            return _info(repository, commit)
        self._allowed(repository, token)
        revision, _, folder = rest.partition("/")
        commit = self._commit(repository, revision)
        entries = _tree(repository.commits[commit])
        if verb == "tree":
            below = [entry for entry in entries if not folder or entry["path"].startswith(folder + "/")]
            if folder and not below:
                raise _Refused(404, "EntryNotFound", f"{folder} does not exist", commit)
            if query.get("recursive", ["false"])[0].lower() == "true":
                return below
            prefix = f"{folder}/" if folder else ""
            return [entry for entry in below if "/" not in entry["path"][len(prefix) :]]
        wanted = _paths(body, self.headers.get("Content-Type") or "")
        return [entry for entry in entries if entry["path"] in wanted]

    def _resolve(self, found: re.Match[str], token: str | None, fault: Fault | None) -> None:
        repository = self._repository("dataset" if found["dataset"] else "model", found["name"], token)
        self._allowed(repository, token)
        commit = self._commit(repository, found["revision"])
        file = repository.commits[commit].get(found["path"])
        if file is None:
            raise _Refused(404, "EntryNotFound", f"{found['path']} does not exist", commit)
        self._send_file(found["path"], file, commit, fault)

    def _send_file(self, path: str, file: StoredFile, commit: str, fault: Fault | None) -> None:
        start, end = _range(self.headers.get("Range"), file.size)
        self.send_response(206 if self.headers.get("Range") else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        if is_large(path, file):
            self.send_header("X-Linked-Size", str(file.size))
            self.send_header("X-Linked-Etag", f'"{file.sha256}"')
            self.send_header("ETag", f'"{file.sha256}"')
        else:
            self.send_header("ETag", f'"{file.blob_id}"')
        if self.headers.get("Range"):
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{file.size}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        content = file.read()[start:end]
        if fault is None or fault.kind not in ("cut", "reset"):
            self.wfile.write(content)
            return
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.close_connection = True
        if fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _send_json(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, refusal: _Refused) -> None:
        body = json.dumps({"error": refusal.message}).encode()
        self.send_response(refusal.status)
        if refusal.code:
            self.send_header("X-Error-Code", refusal.code)
        if refusal.commit:
            self.send_header("X-Repo-Commit", refusal.commit)
        self.send_header("X-Error-Message", refusal.message)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _info(repository: Repository, commit: str) -> dict[str, Any]:
    return {
        "_id": "0" * 24,
        "id": repository.name,
        "sha": commit,
        "private": False,
        "gated": "manual" if repository.gated else False,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "cardData": repository.card,
        "siblings": [{"rfilename": path} for path in repository.commits[commit]],
    }


def _tree(files: Mapping[str, StoredFile]) -> list[dict[str, Any]]:
    """Entries of files and of the folders they are in."""
    entries: dict[str, dict[str, Any]] = {}
    for path, file in files.items():
        for depth in range(1, path.count("/") + 1):
            folder = "/".join(path.split("/")[:depth])
            entries[folder] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": folder}
        entry: dict[str, Any] = {"type": "file", "oid": file.blob_id, "size": file.size, "path": path}
        if is_large(path, file):
            entry["oid"] = file.pointer_id
            entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
        entries[path] = entry
    return list(entries.values())


def _paths(body: bytes, content_type: str) -> list[str]:
    if "json" in content_type:
        return list(json.loads(body)["paths"])
    return parse_qs(body.decode()).get("paths", [])


def _range(header: str | None, size: int) -> tuple[int, int]:
    """First byte and the one after the last; the whole file without a header."""
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", header or "")
    if not found:
        return 0, size
    return int(found[1]), min(size, int(found[2]) + 1) if found[2] else size
