"""The Prefect API that a flow talks to: the configured one, or a temporary one that ends with the flow."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import prefect
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, get_current_settings, temporary_settings

from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.pipeline.running import held_lock

_TIED = Path(__file__).with_name("tied.py")
_START_SECONDS = 120.0


@contextmanager
def prefect_api() -> Iterator[str]:
    """The address of a server that answers. Raises BadInput when one is configured and absent."""
    configured = PREFECT_API_URL.value()
    if configured:
        require_server(configured)
        yield configured
        return
    # Prefect makes its database at the first start: two that do so at once break it for one another.
    with held_lock(PREFECT_HOME.value() / "first-start.lock"):
        process, url = _start_own()
        try:
            _wait_until_healthy(process, url)
        except BaseException:
            _end(process)
            raise
    try:
        with temporary_settings({PREFECT_API_URL: url}):
            yield url
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def require_server(url: str) -> None:
    """Raises BadInput where no Prefect server answers at the address."""
    try:
        healthy = httpx.get(f"{url}/health", timeout=10).status_code == 200
    except (httpx.HTTPError, httpx.InvalidURL):
        healthy = False
    if not healthy:
        raise BadInput(
            f"no Prefect server answers at {url} (PREFECT_API_URL): start it with `prefect server start`, "
            "or unset the variable to run without one"
        )


def _start_own() -> tuple[subprocess.Popen[bytes], str]:
    """As Prefect starts a temporary server, but tied to this process: after kill -9 of the flow none is left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | get_current_settings().to_environment_variables(exclude_unset=True)
    environment |= {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    uvicorn = [sys.executable, "-m", "uvicorn", "--app-dir", str(prefect.__module_path__.parent), "--factory"]
    uvicorn += ["prefect.server.api.server:create_app", "--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-I", "-S", str(_TIED), str(os.getpid()), *uvicorn, "--log-level", "error"]
    # A session of its own: Ctrl-C reaches the flow, which still reports to the server while it cleans up.
    return subprocess.Popen(command, env=environment, start_new_session=True), f"http://127.0.0.1:{port}/api"


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise StageFailed(f"Prefect's own server did not start within {_START_SECONDS:g} s; see its messages above")
