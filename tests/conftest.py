"""Set before torch is imported anywhere: tests run beside one another and must not spin while they wait."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gc
from collections.abc import Iterator
from pathlib import Path

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
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of the one process whose forks are the stages of projects that share imports."""
    from tests.flows.servers import forked_stages

    with forked_stages(tmp_path_factory.mktemp("forked")) as socket:
        yield socket
