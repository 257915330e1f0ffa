"""Servers for the tests, on loopback and random ports: Prefect, S3, SSH; and the process with all imports.

Each ends with its block.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.dag import ROOT

FORKED = Path(__file__).with_name("forked.py")
FAST_LOCK = Path(__file__).with_name("fast_lock")
BIN = Path(sys.executable).parent
LIBRARIES = "RESTORELCC_TESTS_LIBRARIES"  # the socket of the process that has imported all libraries, if there is one


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], object], what: str, seconds: float = 600) -> object:
    """Poll until a condition is true; its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds:g} s for {what}")


@contextmanager
def process(*command: str, log: Path, cwd: Path | None = None, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process group with its output in a file, ended by its id."""
    with log.open("wb") as file:
        started = subprocess.Popen(
            command,
            cwd=cwd,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(started.pid, number)
            except ProcessLookupError:
                break
            try:
                started.wait(timeout=10)
            except subprocess.TimeoutExpired:
                continue
        started.wait()


@contextmanager
def forked_stages(folder: Path, what: str = "serve", *, alone: bool = False, **environment: str) -> Iterator[Path]:
    """The process that has imported what stages import; a command sent to its socket runs in a fork of it.

    `serve-flows`: what flows import, and the commands of Prefect and DVC. `serve-numerics`: the packages of stages.
    It is a fork itself where all of the tests share the imports of libraries; not if `alone`.
    """
    folder.mkdir(exist_ok=True)
    path = folder / "socket"
    python: tuple[str, ...] = (sys.executable,)
    if (libraries := os.environ.get(LIBRARIES)) and not alone:
        python = fork_of(Path(libraries))
    command = (*python, "-m", "tests.flows.forked", what, str(path), "-" * 1000)  # room for a fork's own
    environment = {"PYTHONPATH": str(ROOT), "RESTORELCC_PROGRESS": "0"} | environment
    with process(*command, log=folder / "forked.log", **environment) as server:
        wait_for(lambda: path.exists() or server.poll() is not None, "the process with the imports")
        assert server.poll() is None, (folder / "forked.log").read_text()[-3000:]
        yield path


def fork_of(socket: Path) -> tuple[str, ...]:
    """What a command begins with that the process behind the socket runs in a fork; the fork ends with it."""
    return (sys.executable, "-I", "-S", str(FORKED), str(socket))


def library_python(socket: Path) -> Path:
    """A Python beside the socket whose processes are such forks, whatever they run."""
    script = socket.with_name("python")
    script.write_text(f'#!/bin/sh\nexec {" ".join(fork_of(socket))} "$@"\n')
    script.chmod(0o755)
    return script


def forking_python(folder: Path, socket: Path, *modules: str) -> Path:
    """A script in the place of Python: its `-m module` is such a fork, and so is what multiprocessing starts (Dask's
    workers). $LIGHT_PYTHON has it used."""
    script = folder / "python"
    if not script.exists():
        folder.mkdir()
        known = "|".join([*(f'"-m {name}"' for name in modules), '"-c from multiprocessing"*'])
        lines = ["#!/bin/sh", '[ "$1 $2" = "-P -m" ] && shift']
        lines += [f'case "$1 $2" in {known}) exec {" ".join(fork_of(socket))} "$@" ;; esac']
        script.write_text("\n".join([*lines, f'exec {sys.executable} "$@"\n']))
        script.chmod(0o755)
    return script


def forked_command(socket: Path) -> str:
    """In a shell script: `restorelcc`, run by the process behind the socket."""
    return f'{sys.executable} -I -S {FORKED} "{socket}"'


def made_database(home: Path, socket: Path) -> None:
    """Fill a new folder for $PREFECT_HOME with a database, its tables made as the server makes them."""
    making = home.with_name(f"{home.name}-making")
    command = (*fork_of(socket), "prefect", "server", "database", "upgrade", "--yes")
    done = subprocess.run(
        command, env=os.environ | {"PREFECT_HOME": str(making)}, capture_output=True, text=True, check=False
    )
    assert (making / "prefect.db").is_file(), done.stdout + done.stderr
    making.rename(home)


def migrated(home: Path, template: Path) -> Path:
    """A folder for $PREFECT_HOME with another's database: making its tables takes longer than many a test."""
    home.mkdir(parents=True)
    with (
        closing(sqlite3.connect(template / "prefect.db")) as source,
        closing(sqlite3.connect(home / "prefect.db")) as copy,
    ):
        source.backup(copy)
    return home


@contextmanager
def prefect_server(folder: Path, socket: Path) -> Iterator[dict[str, str]]:
    """`prefect server start` in a fork; the environment that makes Prefect's client use it."""
    port = free_port()
    environment = {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "120",  # on a busy machine the shipped ten seconds are not enough
        "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",  # which takes longer than all else at the start
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    start = (*fork_of(socket), "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui")
    with process(*start, log=folder / "prefect.log", **environment) as server:
        url = f"{environment['PREFECT_API_URL']}/health"
        wait_for(lambda: server.poll() is not None or urllib.request.urlopen(url).status == 200, "the Prefect server")
        assert server.poll() is None, (folder / "prefect.log").read_text()[-3000:]
        yield environment


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """moto's HTTP server with the bucket `team`; its address and credentials for it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with process(str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port), log=folder / "moto.log"):
        wait_for(lambda: urllib.request.urlopen(f"{url}/moto-api/").status == 200, "the S3 server")
        request = urllib.request.Request(f"{url}/team", method="PUT")
        urllib.request.urlopen(request).close()
        yield {
            "ENDPOINT": url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def ssh_server(folder: Path) -> Iterator[tuple[int, Path]]:
    """sshd with keys of its own: its port, and a home folder whose ~/.ssh/config knows the way."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if not sshd:
        pytest.skip("no sshd on this machine: apt-get install openssh-server")
    home, port = folder / "home", free_port()
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    config = folder / "sshd_config"
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder}/host",
        f"AuthorizedKeysFile {folder}/authorized",
        f"PidFile {folder}/sshd.pid",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "PermitRootLogin prohibit-password",
        "Subsystem sftp internal-sftp",
    ]
    config.write_text("\n".join(lines) + "\n")
    user = folder / "user"
    user.chmod(0o600)
    (home / ".ssh" / "config").write_text(f"Host 127.0.0.1\n  IdentityFile {user}\n  IdentitiesOnly yes\n")
    Path("/run/sshd").mkdir(exist_ok=True) if os.getuid() == 0 else None
    with process(sshd, "-D", "-e", "-f", str(config), log=folder / "sshd.log") as server:
        wait_for(lambda: socket.create_connection(("127.0.0.1", port), 1).close() is None, "sshd")
        assert server.poll() is None, (folder / "sshd.log").read_text()
        yield port, home


class Cutter:
    """A TCP proxy that drops every connection once so many bytes have passed.

    hang: it keeps them, and nothing passes any more; "one": so of the connection that passed the mark, others work.
    """

    def __init__(self, target: int, after: int, *, hang: bool | str = False) -> None:
        import threading

        self.port, self._hang = free_port(), hang
        self._mended = threading.Event()
        self._target, self._left = target, after
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def mend(self) -> None:
        """From now on nothing is dropped."""
        self._left = 2**60
        self._mended.set()

    def _accept(self) -> None:
        import threading

        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(4096):
                self._left -= len(data)
                if self._left < 0:
                    self.cut = True
                    if self._hang:
                        self._left = 2**60 if self._hang == "one" else self._left
                        self._mended.wait()
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
