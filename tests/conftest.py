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

# The files that take longest, by `make test-durations`: two workers end together when these come first.
LONG = (
    *("flows/test_schedules", "flows/test_docs", "flows/test_machines", "flows/test_remotes", "flows/test_restore"),
    *("flows/test_user_files", "flows/test_exact", "test_end_to_end", "pipeline/test_restore_process", "test_audit"),
    *("pipeline/test_restore", "flows/test_experiments", "flows/test_faults", "models/test_families"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the order within a file stays."""
    order = {f"tests/{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


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
