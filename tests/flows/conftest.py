"""One server of each kind for all tests that a process runs; each ends with the session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.servers import prefect_server, s3_server, ssh_server


@pytest.fixture(scope="session")
def prefect_home(prefect: dict[str, str]) -> Path:
    """Where the Prefect server keeps its database."""
    return Path(prefect["PREFECT_HOME"])


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment that makes Prefect use the session's server."""
    with prefect_server(tmp_path_factory.mktemp("prefect")) as environment:
        yield environment


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An S3 server with the bucket `team`: its ENDPOINT, and credentials for it."""
    with s3_server(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


@pytest.fixture(scope="session")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """The port of an SSH server, and a home folder whose ~/.ssh/config knows the way."""
    with ssh_server(tmp_path_factory.mktemp("ssh")) as server:
        yield server
