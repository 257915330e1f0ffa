"""Point the hub clients of this process at a loopback hub, with a cache of their own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from restorelcc.__main__ import main
from tests.dag import ROOT
from tests.hub.server import LoopbackHub


def point_at(hub: LoopbackHub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub and datasets read their settings when they are imported: set them where they keep them."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        datasets.config, "HUB_DATASETS_URL", hub.endpoint + "/datasets/{repo_id}/resolve/{revision}/{path}"
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_HUB_OFFLINE=1 does to a process that starts with it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


class HubProject:
    """A project folder with one model `x`, whose verbs are called in this process."""

    def __init__(self, folder: Path, entry: dict[str, Any], **sections: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        shutil.copy(ROOT / "dvc.yaml", folder)
        content = yaml.safe_load((ROOT / "params.yaml").read_text())
        content["models"] = {"x": entry}
        content["grid"] |= {"model": ["x"], "head_ratio": [0.25]}
        for name, changes in sections.items():
            content[name] |= changes
        (folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def set(self, **entry: Any) -> None:
        """Change keys of the model's entry."""
        content = yaml.safe_load((self.folder / "params.yaml").read_text())
        content["models"]["x"] |= entry
        (self.folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def call(self, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
        """Exit code of a verb."""
        with monkeypatch.context() as patch:
            patch.chdir(self.folder)
            patch.setattr("sys.argv", ["restorelcc", *arguments])
            try:
                main()
            except SystemExit as end:
                return int(end.code or 0)
        return 0

    def written(self) -> list[str]:
        """Every file of the project but params.yaml and dvc.yaml."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.folder)) for path in found if path.suffix != ".yaml")


@contextmanager
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Retries follow one another at once."""
    with monkeypatch.context() as patch:
        patch.setattr("time.sleep", lambda _seconds: None)
        yield
