"""What `make` decides before anything is installed."""

from __future__ import annotations

import importlib.util
import re
import socket
import subprocess
import time
from types import ModuleType

import pytest

from restorelcc import __version__
from tests.dag import ROOT


@pytest.fixture(scope="module")
def torch_index() -> ModuleType:
    spec = importlib.util.spec_from_file_location("torch_index", ROOT / ".ci" / "torch_index.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("given", "linux_x86", "gpu", "reachable", "index", "said"),
    [
        ("https://own/cu128", True, False, True, "https://own/cu128", "https://own/cu128"),
        ("", True, True, True, "", "2.7 GB"),
        ("", True, False, True, "https://download.pytorch.org/whl/cpu", "about 190 MB"),
        ("", True, False, False, "", "does not answer"),
        ("", False, False, True, "", "pip's index"),
    ],
)
def test_the_cpu_build_is_taken_where_there_is_no_gpu_and_its_index_answers(
    torch_index: ModuleType, given: str, linux_x86: bool, gpu: bool, reachable: bool, index: str, said: str
) -> None:
    found, told = torch_index.choice(given, linux_x86=linux_x86, gpu=gpu, reachable=reachable)
    assert found == index
    assert said in told


def test_an_index_that_hangs_is_given_up_soon(torch_index: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_index, "SECONDS", 0.2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and says nothing
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        assert not torch_index.answers(address)
        assert time.monotonic() - started < 5
    assert not torch_index.answers(address)


def test_every_place_has_the_same_version() -> None:
    """The version is written, not made from git: clones without tags, archives and copies have none to make it from."""
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert cited is not None
    assert cited[1] == __version__
    tags = subprocess.run(["git", "tag", "--points-at", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not [tag for tag in tags.stdout.split() if re.match(r"v\d", tag) and tag != f"v{__version__}"]
