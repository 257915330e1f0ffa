"""One server of each kind for all tests of this folder that a process runs; each ends when others follow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock

from tests.dag import ROOT
from tests.flows.light import LightProject
from tests.flows.servers import FAST_LOCK, forked_stages, made_database, migrated, prefect_server, s3_server, ssh_server


@pytest.fixture(scope="session", autouse=True)
def shared_imports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands of light projects are forks of one process, which starts with the first of them."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:

        @cache
        def socket() -> Path:
            environment = {"PYTHONPATH": f"{FAST_LOCK}:{ROOT}", "PREFECT_HOME": str(folder), "DO_NOT_TRACK": "1"}
            return stack.enter_context(forked_stages(folder, "serve-flows", **environment))

        folder = tmp_path_factory.mktemp("commands")
        patch.setattr(LightProject, "commands", staticmethod(socket))
        yield


@pytest.fixture(scope="session")
def prefect_home(shared_imports: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database that has Prefect's tables, made once for all processes of the tests."""
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "prefect-database"
    with FileLock(f"{home}.lock"):
        if not home.exists():
            made_database(home, LightProject.socket())
    return home


@pytest.fixture(scope="package")
def prefect(prefect_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment that makes Prefect use the server. It computes even when nobody asks it anything."""
    folder = tmp_path_factory.mktemp("prefect")
    migrated(folder / "prefect", prefect_home)
    with prefect_server(folder, LightProject.socket()) as environment:
        yield environment


@pytest.fixture(scope="package")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An S3 server with the bucket `team`: its ENDPOINT, and credentials for it."""
    with s3_server(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


@pytest.fixture(scope="package")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """The port of an SSH server, and a home folder whose ~/.ssh/config knows the way."""
    with ssh_server(tmp_path_factory.mktemp("ssh")) as server:
        yield server
