"""Two people and a remote: what one has computed the other gets, over a folder, S3 and SSH."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest

from tests.flows.light import LightProject
from tests.flows.servers import Cutter, s3_server, ssh_server

GRID = {"pruning": ["wanda-0.5"], "head_ratio": [0.25]}
STAGES = 13


@dataclass
class Remote:
    """Address, and what the environment must hold to reach it."""

    url: str
    options: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    port: int | None = None


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> LightProject:
    project = LightProject(tmp_path_factory.mktemp("first") / "ann", GRID)
    assert len(project.repro()) == STAGES
    return project


@pytest.fixture(
    params=["folder", pytest.param("s3", marks=pytest.mark.workflow), pytest.param("ssh", marks=pytest.mark.workflow)]
)
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Remote]:
    with ExitStack() as stack:
        if request.param == "folder":
            yield Remote(str(tmp_path / "remote"))
        elif request.param == "s3":
            keys = stack.enter_context(s3_server(tmp_path))
            url = keys.pop("ENDPOINT")
            yield Remote("s3://team/results", ["--endpoint", url], keys, urlsplit(url).port)
        else:
            port, home = stack.enter_context(ssh_server(tmp_path))
            yield Remote(f"ssh://127.0.0.1:{port}{tmp_path}/results", [], {"HOME": str(home)}, port)


def ok(project: LightProject, remote: Remote, *command: str) -> str:
    done = project.restorelcc(*command, **remote.environment)
    assert done.code == 0, done.text[-3000:]
    return done.text


def test_the_second_person_computes_nothing_with_and_without_the_lock(
    computed: LightProject, remote: Remote, tmp_path: Path
) -> None:
    ann = computed.copy(tmp_path / "ann")
    ok(ann, remote, "share", remote.url, *remote.options)
    config = (ann.folder / ".dvc/config").read_text()
    assert "verify = true" in config
    assert "testing" not in config
    ann.commit("share")  # dvc.lock is among it
    ok(ann, remote, "push")
    bob = ann.clone(tmp_path / "bob")
    text = ok(bob, remote, "pull")
    assert "0 left to compute" in text
    assert bob.repro() == []
    assert bob.artifacts() == ann.artifacts()

    carol = ann.clone(tmp_path / "carol")
    (carol.folder / "dvc.lock").unlink()
    text = ok(carol, remote, "pull")
    assert f"{STAGES} stages restored, 0 left to compute" in text
    assert carol.repro() == []
    assert carol.artifacts() == ann.artifacts()


@pytest.mark.workflow
@pytest.mark.parametrize("remote", ["s3", "ssh"], indirect=True)
def test_a_cut_connection_is_made_good_by_running_again(computed: LightProject, remote: Remote, tmp_path: Path) -> None:
    assert remote.port
    ann = computed.copy(tmp_path / "ann")
    cutter = Cutter(remote.port, after=60_000)
    through = Remote(
        remote.url.replace(f":{remote.port}", f":{cutter.port}"),
        [option.replace(f":{remote.port}", f":{cutter.port}") for option in remote.options],
        remote.environment | {"AWS_MAX_ATTEMPTS": "2"},  # else the S3 library tries for minutes
    )
    done = ann.restorelcc("share", through.url, *through.options, **through.environment)
    assert done.code == 0, done.text
    ann.commit("share")
    done = ann.restorelcc("push", **through.environment)
    assert cutter.cut
    assert done.code in (1, 2), done.text
    cutter.mend()
    ok(ann, remote, "push")

    bob = ann.clone(tmp_path / "bob")
    cutter._left, cutter.cut = 60_000, False
    done = bob.restorelcc("pull", **through.environment)
    assert cutter.cut
    assert done.code in (1, 2), done.text
    cutter.mend()
    ok(bob, remote, "pull")
    cutter.close()
    assert bob.repro() == []
    assert bob.artifacts() == ann.artifacts()


COMPONENTS = "data/tiny/wanda-0.5/components.safetensors"


def corrupt(remote: Remote, folder: Path, digest: str) -> None:
    """Change the last byte of an object where the remote keeps it."""
    name = f"files/md5/{digest[:2]}/{digest[2:]}"
    if remote.url.startswith("s3://"):
        keys = {key: remote.environment[key.upper()] for key in ("aws_access_key_id", "aws_secret_access_key")}
        held = boto3.resource("s3", endpoint_url=remote.options[1], **keys).Object("team", f"results/{name}")
        held.put(Body=held.get()["Body"].read()[:-1] + b"?")
        return
    file = (folder if "://" in remote.url else Path(remote.url)) / name
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"?")


@pytest.mark.workflow
def test_a_corrupted_object_is_refused(computed: LightProject, remote: Remote, tmp_path: Path) -> None:
    ann = computed.copy(tmp_path / "ann")
    ok(ann, remote, "share", remote.url, *remote.options)
    ann.commit("share")
    ok(ann, remote, "push")
    lock = (ann.folder / "dvc.lock").read_text().split(f"path: {COMPONENTS}")[1]
    corrupt(remote, tmp_path / "results", lock.split("md5: ")[1].split()[0])
    bob = ann.clone(tmp_path / "bob")
    done = bob.restorelcc("pull", **remote.environment)
    assert done.code == 1, done.text
    assert f"1 files of dvc.lock are missing or damaged in the remote, the first is {COMPONENTS}" in done.text
    assert "Traceback" not in done.text
    assert not (bob.folder / COMPONENTS).exists()
    ran = bob.repro()
    assert ran == ["extract@tiny-wanda-0.5"], "it is computed, not taken, and what follows comes from the run-cache"
    assert bob.artifacts() == ann.artifacts()


BAD = [
    (["push"], "no remote is configured: run `restorelcc share URL`"),
    (["pull", "--remote", "elsewhere"], "remote 'elsewhere' is unknown: known are none"),
    (["share", "ftp://host/path"], "a remote at ftp:// is not supported"),
    (["share", "ssh://me:secret@host/path"], "holds a password"),
    (["share", "s3://"], "names no bucket"),
    (["share", "folder", "--endpoint", "http://x"], "--endpoint is the address of an S3 server"),
    (["push", "--root", "/"], "is not a DVC project"),
    (["share", ""], "the remote has no address"),
    (["share", "."], "is the project's own folder"),
    (["share", "data/remote"], "is the project's own folder"),
    (["share", "dvc.yaml/remote"], "dvc.yaml is not a folder"),
]


@pytest.mark.parametrize(("command", "sentence"), BAD)
def test_bad_input_is_one_sentence(tmp_path_factory: pytest.TempPathFactory, command: list[str], sentence: str) -> None:
    project = _bare(tmp_path_factory)
    before = (project.folder / ".dvc/config").read_text()
    done = project.restorelcc(*command)
    assert (done.code, sentence in done.text) == (2, True), done.text
    assert len(done.text.strip().splitlines()) == 1
    assert "secret" not in done.text
    assert (project.folder / ".dvc/config").read_text() == before


_made: list[LightProject] = []


def _bare(factory: pytest.TempPathFactory) -> LightProject:
    if not _made:
        _made.append(LightProject(factory.mktemp("bare") / "project"))
    return _made[0]


@pytest.mark.workflow
def test_a_remote_without_credentials_or_server_is_one_sentence(tmp_path: Path) -> None:
    project = LightProject(tmp_path / "project")
    with s3_server(tmp_path) as keys:
        endpoint = ["--endpoint", keys.pop("ENDPOINT")]
        done = project.restorelcc("share", "s3://team/x", *endpoint, AWS_EC2_METADATA_DISABLED="true")
        assert (done.code, "set AWS_ACCESS_KEY_ID" in done.text) == (2, True), done.text
        done = project.restorelcc("share", "s3://nobody/x", *endpoint, **keys)
        assert (done.code, "cannot be used" in done.text) == (2, True), done.text
    done = project.restorelcc("push", **keys)
    assert (done.code, "check the address and that the server runs" in done.text) == (2, True), done.text
    assert len(done.text.strip().splitlines()) == 1
