"""What a hub stores: repositories with commits, branches and files, hashed as the hub hashes them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Content = bytes | Path


@dataclass(frozen=True)
class StoredFile:
    """One file at one commit."""

    content: Content

    def read(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @property
    def blob_id(self) -> str:
        """The id git gives the content."""
        return hashlib.sha1(b"blob %d\0" % self.size + self.read()).hexdigest()

    @property
    def pointer_id(self) -> str:
        """The id git gives the pointer that it holds in the place of a large file."""
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n"
        text = pointer % (self.sha256.encode(), self.size)
        return hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.read()).hexdigest()


@dataclass
class Repository:
    """A model or a dataset: commits (files by path), and the branches that point to them."""

    kind: str  # "model" or "dataset"
    name: str
    gated: bool = False
    card: dict[str, object] = field(default_factory=dict)
    commits: dict[str, dict[str, StoredFile]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, Content], branch: str = "main") -> str:
        """Put a new state of all files on a branch; returns its commit hash."""
        stored = {path: StoredFile(content) for path, content in sorted(files.items())}
        listing = "".join(f"{path} {file.blob_id}\n" for path, file in stored.items())
        parent = self.branches.get(branch, "")
        commit = hashlib.sha1(f"{self.kind} {self.name} {parent}\n{listing}".encode()).hexdigest()
        self.commits[commit] = stored
        self.branches[branch] = commit
        return commit

    def resolve(self, revision: str | None) -> str | None:
        """The commit of a branch or a commit hash; None when there is none."""
        revision = revision or "main"
        return self.branches.get(revision) or (revision if revision in self.commits else None)


def is_large(path: str, file: StoredFile) -> bool:
    """Whether the hub keeps the file in its large file storage, under its SHA-256."""
    return path.endswith((".safetensors", ".parquet", ".bin")) or file.size > 10_000_000


def folder_files(folder: Path) -> dict[str, Content]:
    """Every file below a folder by its relative path."""
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
