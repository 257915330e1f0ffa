"""Content digests: artifacts carry those of their inputs, so that a stale or foreign one is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

from restorelcc.core.errors import BadInput


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hex. Raises BadInput when it is missing."""
    if not path.is_file():
        raise BadInput(f"{path} is missing: run the stage that writes it (dvc repro)")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_digest(paths: list[Path]) -> str:
    """SHA-256 over names and digests of several files, in the order of their names."""
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        total.update(f"{path.name} {file_digest(path)}\n".encode())
    return total.hexdigest()


def model_digest(folder: Path) -> str:
    """Identity of a model folder: its weights and config, or the reference to a hub commit or another folder."""
    paths = [*folder.glob("*.safetensors"), *folder.glob("*.json")]
    names = {"config.json", "model_ref.json"}
    return files_digest([path for path in paths if path.suffix == ".safetensors" or path.name in names])


def expect_digest(what: str, recorded: str | None, actual: str) -> None:
    """Raises BadInput unless an artifact's recorded input digest is that of the input now at hand."""
    if recorded != actual:
        raise BadInput(
            f"{what} (recorded {str(recorded)[:12]}, found {actual[:12]}): the artifacts do not belong together, "
            "run `dvc repro` to bring them in step"
        )
