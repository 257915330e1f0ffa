"""What a hub can refuse or break, and how a stage says so: message, exit code, nothing half-written, the next run."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from restorelcc.base.errors import BadInput
from restorelcc.models.checkpoints import load_model, load_tokenizer
from restorelcc.models.hub import Repository, fetch_config
from tests.hub.client import HubProject, go_offline, no_waiting, point_at
from tests.hub.faults import Fault
from tests.hub.fixtures import pico_files
from tests.hub.repositories import Content
from tests.hub.server import LoopbackHub

NAME = "me/pico"
DATA = {"calibration": "t.txt", "instructions": "i.jsonl", "heldout": "t.txt"}
WEIGHTS = "model.safetensors"
REFERENCE = "data/x/dense/model_ref.json"


@pytest.fixture(scope="module")
def files() -> dict[str, Content]:
    return pico_files()


@pytest.fixture
def hub(files: dict[str, Content], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_model(NAME, files)
        point_at(hub, tmp_path / "home", monkeypatch)
        yield hub


class Dense:
    """The stage `dense` of a project whose model is on the hub."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.project = HubProject(folder, {"source": NAME, "data": DATA})
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def succeeds(self) -> str:
        """Run it; returns all that it said."""
        code, said = self._run()
        assert code == 0, said
        return said

    def fails(self, code: int, *parts: str) -> str:
        """Run it; the one sentence it ends with holds all parts, and nothing is written of the model."""
        found, said = self._run()
        lines = [line for line in said.splitlines() if line.startswith("restorelcc: ")]
        assert found == code and len(lines) == 1, said
        assert lines[0].startswith({1: "restorelcc: failed: ", 2: "restorelcc: error: "}[code])
        for part in parts:
            assert part in lines[0]
        assert not [name for name in self.project.written() if name.startswith("data/x")]
        return said

    def _run(self) -> tuple[int, str]:
        self._capfd.readouterr()
        with no_waiting(self._monkeypatch):
            code = self.project.call(self._monkeypatch, "dense", "--model", "x")
        said = self._capfd.readouterr()
        return code, said.out + said.err


@pytest.fixture
def dense(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Dense:
    return Dense(tmp_path / "project", monkeypatch, capfd)


def _cache(tmp_path: Path) -> list[str]:
    """Blobs of the hub's cache, part-written ones among them."""
    return sorted(path.name for path in (tmp_path / "home").rglob("blobs/*"))


def _fetched(hub: LoopbackHub) -> list[str]:
    """Files that were asked for."""
    return [request.path.split("/")[-1] for request in hub.requests if "/resolve/" in request.path]


def test_a_reference_holds_the_commit_and_no_weights(hub: LoopbackHub, dense: Dense) -> None:
    dense.succeeds()
    folder = (dense.project.folder / REFERENCE).parent
    reference = json.loads((folder / "model_ref.json").read_text())
    assert reference["source"] == NAME
    assert reference["revision"] == hub.model(NAME).branches["main"]
    assert {WEIGHTS, "config.json", "tokenizer.json"} <= set(reference["files"])
    assert [path.name for path in folder.iterdir()] == ["model_ref.json"]
    assert not list(dense.project.folder.rglob("*.safetensors"))
    asked = len(hub.requests)
    assert load_model(folder, torch.float32, torch.device("cpu")).config.model_type == "llama"
    assert load_tokenizer(folder).pad_token == "<pad>"
    assert len(hub.requests) == asked, "a warm cache needs no network"


@pytest.mark.parametrize(
    ("token", "why"), [(None, "no token was sent"), ("hf_wrong", "your token has no access to it")], ids=["401", "403"]
)
def test_a_gated_model_says_how_to_get_in_and_the_next_run_succeeds(
    token: str | None, why: str, hub: LoopbackHub, dense: Dense, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.model(NAME).gated = True
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    dense.fails(2, f"models.x: the model {NAME!r} is gated and {why}", f"{hub.endpoint}/{NAME}", "HF_TOKEN")
    hub.accepted_tokens.add("hf_right")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    dense.succeeds()


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, 2, "refuses your token for the model 'me/pico' (401)"),
        (403, 2, "refuses your token for the model 'me/pico' (403)"),
        (429, 1, "answers 429 for the model 'me/pico': run again later"),
        (503, 1, "answers 503 for the model 'me/pico': run again later"),
    ],
)
def test_a_refused_token_and_a_hub_out_of_order(
    status: int, code: int, message: str, hub: LoopbackHub, dense: Dense, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    hub.faults.add(Fault("status", path=NAME, status=status))
    dense.fails(code, message)
    hub.faults.clear()
    dense.succeeds()


@pytest.mark.parametrize("token", [None, "hf_right"])  # the hub answers 401 to a stranger and 404 to a user
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"source": "me/nothing"}, "has no model 'me/nothing', or it is private"),
        ({"revision": "v9"}, "the model 'me/pico' has no revision 'v9': name a branch, tag or commit"),
        ({"source": "not a name"}, "has no model 'not a name', or it is private"),
    ],
)
def test_what_is_not_there_is_named(
    token: str | None, entry: dict[str, str], message: str, dense: Dense, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    dense.project.set(**entry)
    dense.fails(2, "models.x: ", message)
    dense.project.set(source=NAME, revision=None)
    dense.succeeds()


def test_a_pickle_is_not_taken_for_weights(hub: LoopbackHub, files: dict[str, Content], dense: Dense) -> None:
    others = {name: content for name, content in files.items() if name != WEIGHTS}
    hub.add_model(NAME, others | {"pytorch_model.bin": b"pickle"})
    dense.fails(2, "holds no safetensors weights, only pytorch_model.bin, a pickle, which is never loaded")
    assert not _fetched(hub)


@pytest.mark.parametrize("kind", ["cut", "reset"])
def test_a_connection_cut_at_half_of_a_file_is_resumed(
    kind: str, hub: LoopbackHub, dense: Dense, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults.add(Fault(kind, path=WEIGHTS, method="GET", times=1))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)  # what is resumed is counted in chunks
    dense.succeeds()
    gets = [request for request in hub.requests if request.path.endswith(WEIGHTS) and request.method == "GET"]
    assert len(gets) == 2
    if kind == "cut":
        assert gets[1].range and not gets[1].range.startswith("bytes=0-"), "the second half alone is asked for"
    assert not [name for name in _cache(tmp_path) if name.endswith("incomplete")]


@pytest.mark.parametrize("kind", ["cut", "reset"])
def test_a_connection_that_never_holds_fails_and_keeps_what_is_whole(
    kind: str, hub: LoopbackHub, dense: Dense, tmp_path: Path
) -> None:
    hub.faults.add(Fault(kind, path=WEIGHTS, method="GET"))
    dense.fails(1, f"models.x: the connection to {hub.endpoint} failed for the model {NAME!r}", "run again")
    kept = _cache(tmp_path)
    assert kept and not [name for name in kept if name.endswith("incomplete")]
    hub.faults.clear()
    hub.requests.clear()
    dense.succeeds()
    assert WEIGHTS in _fetched(hub) and "config.json" not in _fetched(hub)


def test_no_hub_at_all(hub: LoopbackHub, dense: Dense) -> None:
    hub.faults.add(Fault("silent"))
    dense.fails(1, f"the connection to {hub.endpoint} failed")
    hub.faults.clear()
    dense.succeeds()


def test_a_full_disk_is_said_before_the_download(
    hub: LoopbackHub, dense: Dense, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _path: usage(10**6, 10**6, 100))
        dense.fails(1, "needs 0 MB", "where 0 MB are free: make room, or set HF_HOME")
    assert not _fetched(hub)
    dense.succeeds()


def test_a_disk_that_fills_up_during_the_download_leaves_no_part_of_a_file(
    dense: Dense, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", full)
        dense.fails(1, "the disk became full while the model 'me/pico' was being fetched", "HF_HOME")
    assert not _cache(tmp_path)
    dense.succeeds()


def test_a_disk_that_is_full_where_artifacts_are_written(dense: Dense, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model_ref.json")

    with monkeypatch.context() as patch:
        patch.setattr("restorelcc.models.checkpoints.write_reference", full)
        dense.fails(1, "the disk is full", "model_ref.json", "make room")
    dense.succeeds()


def test_offline_a_cold_cache_names_the_missing_file_and_a_warm_one_is_enough(
    hub: LoopbackHub, dense: Dense, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        go_offline(patch)
        dense.fails(2, "models.x: HF_HUB_OFFLINE is set and revision 'main' of the model 'me/pico' is not in the hub's")
        assert not hub.requests
    dense.succeeds()
    _is_enough(hub, dense, tmp_path, lambda: go_offline(monkeypatch))


def test_offline_a_cache_without_a_listing_is_enough(
    hub: LoopbackHub, dense: Dense, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an older huggingface_hub leaves it, and a download of single files."""
    dense.succeeds()
    (tree,) = (tmp_path / "home").rglob("trees")
    shutil.rmtree(tree)
    _is_enough(hub, dense, tmp_path, lambda: go_offline(monkeypatch))
    for path in (tmp_path / "home").rglob("snapshots/*/*"):
        path.unlink()
    dense.fails(2, f"HF_HUB_OFFLINE is set and config.json of the model {NAME!r} at commit")
    assert not hub.requests


def _is_enough(hub: LoopbackHub, dense: Dense, home: Path, offline: Callable[[], None]) -> None:
    """The cache below `home` gives the same reference without the hub, and names the weights once they are lost."""
    reference = dense.project.folder / REFERENCE
    first = reference.read_bytes()
    shutil.rmtree(dense.project.folder / "data")
    hub.requests.clear()
    offline()
    dense.succeeds()
    assert reference.read_bytes() == first
    shutil.rmtree(dense.project.folder / "data")
    next(home.rglob(f"snapshots/*/{WEIGHTS}")).unlink()
    dense.fails(2, f"HF_HUB_OFFLINE is set and {WEIGHTS} of the model {NAME!r} at commit")
    assert not hub.requests


def test_a_token_is_sent_and_never_written_or_said(
    hub: LoopbackHub, dense: Dense, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hf_secretsecretsecret"
    monkeypatch.setenv("HF_TOKEN", secret)
    hub.model(NAME).gated = True
    hub.faults.add(Fault("cut", path=WEIGHTS, times=1))
    said = dense.fails(2, "your token has no access to it")
    hub.accepted_tokens.add(secret)
    said += dense.succeeds()
    assert secret in {request.token for request in hub.requests}
    assert secret not in said
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_a_repository_in_shards_is_fetched_by_its_index(hub: LoopbackHub, dense: Dense) -> None:
    sharded = pico_files(shard="8KB")
    names = {name for name in sharded if name.endswith(".safetensors")}
    assert len(names) > 2
    hub.model(NAME).commit(sharded | {"model-00099-of-00099.safetensors": b"of nobody", "other.safetensors": b"too"})
    dense.succeeds()
    files = json.loads((dense.project.folder / REFERENCE).read_text())["files"]
    assert {name for name in files if name.endswith(".safetensors")} == names
    assert names <= set(_fetched(hub)) and "other.safetensors" not in _fetched(hub)
    load_model((dense.project.folder / REFERENCE).parent, torch.float32, torch.device("cpu"))


def test_a_config_that_names_its_weights_is_followed(hub: LoopbackHub, dense: Dense, files: dict[str, Content]) -> None:
    config = json.loads(_bytes(files["config.json"])) | {"transformers_weights": "best.safetensors"}
    hub.model(NAME).commit(files | {"best.safetensors": files[WEIGHTS], "config.json": json.dumps(config).encode()})
    dense.succeeds()
    found = json.loads((dense.project.folder / REFERENCE).read_text())["files"]
    assert "best.safetensors" in found and WEIGHTS not in found
    load_model((dense.project.folder / REFERENCE).parent, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("what", ["two models", "adapter"])
def test_a_repository_of_more_than_one_model_is_refused(
    what: str, hub: LoopbackHub, dense: Dense, files: dict[str, Content]
) -> None:
    if what == "two models":
        hub.model(NAME).commit(pico_files(shard="8KB") | {WEIGHTS: files[WEIGHTS]})
        dense.fails(2, f"models.x: the model {NAME!r} holds two models, {WEIGHTS} and the one of {WEIGHTS}.index.json")
    else:
        hub.model(NAME).commit(files | {"adapter_config.json": b"{}"})
        dense.fails(2, f"models.x: the model {NAME!r} holds adapter_config.json", "merge it")
    assert WEIGHTS not in _fetched(hub)


@pytest.mark.parametrize("held", ["pico.gguf", "adapter_config.json"])
def test_a_repository_without_a_config_is_refused(held: str, hub: LoopbackHub) -> None:
    repository = Repository("--dense", "me/files")
    commit = hub.add_model(repository.name, {held: b"{}", "README.md": b"# Files"})
    listed = re.escape(", ".join(sorted((held, "README.md"))))
    with pytest.raises(
        BadInput, match=f"^--dense: the model 'me/files' holds no config.json, but {listed}: give a repo"
    ):
        fetch_config(repository, commit)


def _bytes(content: Content) -> bytes:
    return content if isinstance(content, bytes) else Path(content).read_bytes()
