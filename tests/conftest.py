"""Set before torch is imported anywhere: tests run beside one another and must not spin while they wait."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import atexit
import gc
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import psutil
import pytest
import typer.testing

# The files that take longest, by `make test-durations`: workers end together when these come first. Those with a server
# stand before all others, for it ends when a worker leaves their folder.
LONG = (
    *("flows/test_schedules", "flows/test_machines", "flows/test_docs", "flows/test_remotes", "flows/test_restore"),
    *("flows/test_user_files", "test_end_to_end", "flows/test_exact", "test_audit", "models/test_families"),
    *("flows/test_faults", "pipeline/test_restore", "pipeline/test_restore_process", "flows/test_experiments"),
    *("stages/evaluate/test_stage", "stages/recover/test_recover", "stages/compensate/test_processes"),
)


SERVERS = ExitStack()
MEMORY, ROOM = Path("/dev/shm"), 6 * 2**30  # bytes that have to be free; the tests take about a tenth of them


def files_in_memory() -> bool:
    """Whether temporary files may lie in memory. To delete or cut a file takes milliseconds on some disks, and DVC does
    so thousands of times."""
    if not MEMORY.is_dir() or not os.access(MEMORY, os.W_OK):
        return False
    there, available = os.statvfs(MEMORY), psutil.virtual_memory().available
    return not there.f_flag & os.ST_NOEXEC and min(there.f_bavail * there.f_frsize, available) >= ROOM


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Keep temporary files in memory where there is room, unless --basetemp or TMPDIR says where they go, and have the
    workers of xdist be forks of one process, which imports torch, DVC and the like for all of them.

    No forks where the lines that run are counted: that begins with a process.
    """
    if not (hasattr(config, "workerinput") or config.option.basetemp or "TMPDIR" in os.environ) and files_in_memory():
        folder = tempfile.mkdtemp(prefix="t-", dir=MEMORY)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # after multiprocessing has removed its own in it
        SERVERS.enter_context(pytest.MonkeyPatch.context()).setenv("TMPDIR", folder)
        tempfile.tempdir = None  # Python has chosen a folder before
    if hasattr(config, "workerinput") or not config.getoption("tx", None) or config.getoption("cov_source", None):
        return
    from tests.flows.servers import LIBRARIES, forked_stages, library_python

    folder = Path(SERVERS.enter_context(tempfile.TemporaryDirectory(prefix="tests-")))
    libraries = SERVERS.enter_context(forked_stages(folder, "serve-libraries", alone=True))
    SERVERS.enter_context(pytest.MonkeyPatch.context()).setenv(LIBRARIES, str(libraries))
    config.option.tx = [f"popen//python={library_python(libraries)}" for _ in config.option.tx]


def pytest_unconfigure() -> None:
    SERVERS.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the order within a file stays."""
    order = {f"tests/{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


def pytest_collection_finish() -> None:
    """What was imported stays: pruning collects garbage after every block, which would look through all of it. And the
    command line is built once, which typer does for every call."""
    gc.freeze()
    typer.testing._get_command = cache(typer.testing._get_command)


@pytest.fixture
def stock_forks() -> Iterator[None]:
    """The process that `verify` starts, which knows transformers alone, is a fork of one that has imported it."""
    from tests.fresh import verify_in_forks

    with verify_in_forks():
        yield


# Where the tasks are that tests name, of lm-eval's fourteen thousand task files.
NAMED_TASKS = ("arc", "glue", "hellaswag", "openbookqa", "super_glue", "winogrande")


@pytest.fixture(scope="session")
def known_tasks() -> Iterator[None]:
    """lm-eval has no tasks but those that tests name: parsing the files of all of them takes ten seconds."""
    from lm_eval.tasks import _index

    own, found = Path(_index.__file__).parent, _index.TaskIndex._iter_yaml_files

    def few(root: Path) -> Iterator[Path]:
        for folder in [own / name for name in NAMED_TASKS] if root == own else [root]:
            yield from found(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_index.TaskIndex, "_iter_yaml_files", staticmethod(few))
        yield


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of the one process whose forks are the stages of projects that share imports."""
    from tests.flows.servers import forked_stages

    with forked_stages(tmp_path_factory.mktemp("forked")) as socket:
        yield socket
