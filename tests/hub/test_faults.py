"""What a hub can refuse or break, and how a stage says so: message, exit code, nothing half-written, the next run."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from restorelcc.io.checkpoints import load_model, load_tokenizer
from tests.hub.client import HubProject, go_offline, no_waiting, point_at
from tests.hub.faults import Fault
from tests.hub.fixtures import pico_files
from tests.hub.repositories import Content
from tests.hub.server import LoopbackHub

NAME = "me/pico"
DATA = {"calibration": "t.txt", "instructions": "i.jsonl", "heldout": "t.txt"}
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def files() -> dict[str, Content]:
    return pico_files()


@pytest.fixture
def hub(files: dict[str, Content], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_model(NAME, files)
        point_at(hub, tmp_path / "home", monkeypatch)
        yield hub


@pytest.fixture
def project(tmp_path: Path) -> HubProject:
    return HubProject(tmp_path / "project", {"source": NAME, "data": DATA})


def _dense(project: HubProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = project.call(monkeypatch, "dense", "--model", "x")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("restorelcc: ")]
    if code:
        assert len(said) == 1, said
        assert not [name for name in project.written() if name.startswith("data/x")]
    return code, "".join(said)


def _cache(tmp_path: Path) -> list[str]:
    """Blobs of the hub's cache, part-written ones among them."""
    return sorted(path.name for path in (tmp_path / "home").rglob("blobs/*"))


def test_a_reference_holds_the_commit_and_no_weights(
    hub: LoopbackHub,
    project: HubProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _dense(project, monkeypatch, capsys)[0] == 0
    folder = project.folder / "data/x/dense"
    reference = json.loads((folder / "model_ref.json").read_text())
    assert reference["source"] == NAME
    assert reference["revision"] == hub.model(NAME).branches["main"]
    assert {WEIGHTS, "config.json", "tokenizer.json"} <= set(reference["files"])
    assert [path.name for path in folder.iterdir()] == ["model_ref.json"]
    assert not list(project.folder.rglob("*.safetensors"))
    asked = len(hub.requests)
    import torch

    assert load_model(folder, torch.float32, torch.device("cpu")).config.model_type == "llama"
    assert load_tokenizer(folder).pad_token == "<pad>"
    assert len(hub.requests) == asked, "a warm cache needs no network"


GATED, REVOKED = "no token was sent", "your token has no access"


@pytest.mark.parametrize(("token", "message"), [(None, GATED), ("hf_wrong", REVOKED)])
def test_a_gated_model_says_how_to_get_in_and_the_next_run_succeeds(
    token: str | None,
    message: str,
    hub: LoopbackHub,
    project: HubProject,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.model(NAME).gated = True
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    code, said = _dense(project, monkeypatch, capsys)
    assert code == 2
    assert said.startswith(f"restorelcc: error: models.x: the model {NAME!r} is gated and {message}")
    assert f"{hub.endpoint}/{NAME}" in said and "HF_TOKEN" in said
    hub.accepted_tokens.add("hf_right")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert _dense(project, monkeypatch, capsys)[0] == 0


def test_a_refused_token_and_a_hub_out_of_order(
    hub: LoopbackHub, project: HubProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    for status, code, message in ((403, 2, "refuses your token"), (503, 1, "answers 503"), (429, 1, "answers 429")):
        hub.faults.add(Fault("status", path=NAME, status=status))
        with no_waiting(monkeypatch):
            found, said = _dense(project, monkeypatch, capsys)
        assert (found, message in said) == (code, True), said
        hub.faults.clear()
    assert _dense(project, monkeypatch, capsys)[0] == 0


def test_what_is_not_there_is_named(
    hub: LoopbackHub, project: HubProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for token in (None, "hf_right"):  # the hub answers 401 to a stranger and 404 to a user
        monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN", raising=False)
        project.set(source="me/nothing", revision=None)
        code, said = _dense(project, monkeypatch, capsys)
        assert (code, f"{hub.endpoint} has no model 'me/nothing'" in said) == (2, True), said
    project.set(source=NAME, revision="v9")
    code, said = _dense(project, monkeypatch, capsys)
    assert (code, "has no revision 'v9'" in said) == (2, True), said
    project.set(source="not a name", revision=None)
    code, said = _dense(project, monkeypatch, capsys)
    assert (code, "no model 'not a name'" in said) == (2, True), said
    project.set(source=NAME)
    assert _dense(project, monkeypatch, capsys)[0] == 0


def test_a_pickle_is_not_taken_for_weights(
    hub: LoopbackHub,
    files: dict[str, Content],
    project: HubProject,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    others = {name: content for name, content in files.items() if name != WEIGHTS}
    hub.add_model(NAME, others | {"pytorch_model.bin": b"pickle"})
    code, said = _dense(project, monkeypatch, capsys)
    assert (code, "only pytorch_model.bin, a pickle, which is never loaded" in said) == (2, True), said
    assert not [request for request in hub.requests if "resolve" in request.path]


@pytest.mark.parametrize("kind", ["cut", "reset"])
def test_a_connection_cut_at_half_of_a_file_is_resumed(
    kind: str,
    hub: LoopbackHub,
    project: HubProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.faults.add(Fault(kind, path=WEIGHTS, method="GET", times=1))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)  # what is resumed is counted in chunks
    with no_waiting(monkeypatch):
        assert _dense(project, monkeypatch, capsys)[0] == 0
    gets = [request for request in hub.requests if request.path.endswith(WEIGHTS) and request.method == "GET"]
    assert len(gets) == 2
    if kind == "cut":
        assert gets[1].range and not gets[1].range.startswith("bytes=0-"), "the second half alone is asked for"
    assert not [name for name in _cache(tmp_path) if name.endswith("incomplete")]


def test_a_connection_that_never_holds_fails_and_keeps_what_is_whole(
    hub: LoopbackHub,
    project: HubProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.faults.add(Fault("reset", path=WEIGHTS, method="GET"))
    with no_waiting(monkeypatch):
        code, said = _dense(project, monkeypatch, capsys)
    assert (code, f"the connection to {hub.endpoint} failed" in said) == (1, True), said
    kept = _cache(tmp_path)
    assert kept and not [name for name in kept if name.endswith("incomplete")]
    hub.faults.clear()
    hub.requests.clear()
    assert _dense(project, monkeypatch, capsys)[0] == 0
    fetched = [request.path.split("/")[-1] for request in hub.requests if request.method == "GET"]
    assert WEIGHTS in fetched and "config.json" not in fetched


def test_no_hub_at_all(
    hub: LoopbackHub, project: HubProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults.add(Fault("silent"))
    with no_waiting(monkeypatch):
        code, said = _dense(project, monkeypatch, capsys)
    assert (code, f"connection to {hub.endpoint} failed" in said) == (1, True), said


def test_a_full_disk_is_said_before_and_during_the_download(
    hub: LoopbackHub,
    project: HubProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _path: usage(10**6, 10**6, 100))
        code, said = _dense(project, monkeypatch, capsys)
    assert (code, "needs 0 MB" in said, "make room" in said) == (1, True, True), said
    assert not [request for request in hub.requests if "resolve" in request.path]

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", full)
        code, said = _dense(project, monkeypatch, capsys)
    assert (code, "the disk is full" in said) == (1, True), said
    assert not _cache(tmp_path)
    assert _dense(project, monkeypatch, capsys)[0] == 0


def test_offline_a_cold_cache_names_the_missing_file_and_a_warm_one_is_enough(
    hub: LoopbackHub,
    project: HubProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        go_offline(patch)
        code, said = _dense(project, patch, capsys)
        assert (code, "HF_HUB_OFFLINE is set and revision 'main'" in said) == (2, True), said
        assert not hub.requests
    assert _dense(project, monkeypatch, capsys)[0] == 0
    first = (project.folder / "data/x/dense/model_ref.json").read_bytes()
    shutil.rmtree(project.folder / "data")
    hub.requests.clear()
    go_offline(monkeypatch)
    assert _dense(project, monkeypatch, capsys)[0] == 0
    assert (project.folder / "data/x/dense/model_ref.json").read_bytes() == first
    shutil.rmtree(project.folder / "data")
    next((tmp_path / "home").rglob(f"snapshots/*/{WEIGHTS}")).unlink()
    code, said = _dense(project, monkeypatch, capsys)
    assert (code, f"{WEIGHTS} of the model {NAME!r} at commit" in said) == (2, True), said
    assert not hub.requests


def test_a_token_is_sent_and_never_written_or_said(
    hub: LoopbackHub,
    project: HubProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    secret = "hf_secretsecretsecret"
    monkeypatch.setenv("HF_TOKEN", secret)
    hub.model(NAME).gated = True
    hub.faults.add(Fault("cut", path=WEIGHTS, times=1))
    with no_waiting(monkeypatch):
        assert project.call(monkeypatch, "dense", "--model", "x") == 2
        hub.accepted_tokens.add(secret)
        assert project.call(monkeypatch, "dense", "--model", "x") == 0
    assert secret in {request.token for request in hub.requests}
    said = capfd.readouterr()
    assert secret not in said.out + said.err
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
