"""Set before torch is imported anywhere: tests run beside one another and must not spin while they wait."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import copy
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_collection_finish() -> None:
    """What was imported stays: pruning collects garbage after every block, which would look through all of it."""
    gc.freeze()


@pytest.fixture
def stock_forks() -> Iterator[None]:
    """The process that `verify` starts, which knows transformers alone, is a fork of one that has imported it."""
    from tests.fresh import verify_in_forks

    with verify_in_forks():
        yield


@pytest.fixture(scope="session")
def known_tasks() -> Iterator[None]:
    """lm-eval's own thousands of task files are parsed once, which takes seconds, and not for every index of them."""
    from lm_eval.tasks import _index

    own, load, parsed = Path(_index.__file__).parent, _index.load_yaml, dict[Path, dict[str, Any]]()

    def load_once(path: Path, **options: Any) -> dict[str, Any]:
        if own not in path.parents:
            return load(path, **options)
        if path not in parsed:
            parsed[path] = load(path, **options)
        return copy.deepcopy(parsed[path])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_index, "load_yaml", load_once)
        yield


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of the one process whose forks are the stages of projects that share imports."""
    from tests.flows.servers import forked_stages

    with forked_stages(tmp_path_factory.mktemp("forked")) as socket:
        yield socket
