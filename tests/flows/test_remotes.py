"""Two people and a remote: what one has computed the other gets, over a folder, S3 and SSH."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import time
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import boto3
import pytest
import yaml
from dvc.repo import Repo

from flows.dag import read_dag
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.cli.app import app
from restorelcc.pipeline.params import load_params
from restorelcc.pipeline.run_cache import _links_to, restore_from_cache
from tests.flows.light import FEW, LightProject
from tests.flows.servers import Cutter, free_port

GRID = {"pruning": ["wanda-0.5"], "head_ratio": [0.25]}
STAGES = len(FEW)


@dataclass
class Remote:
    """Address, and what the environment must hold to reach it."""

    url: str
    options: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    port: int | None = None


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> LightProject:
    project = LightProject(tmp_path_factory.mktemp("first") / "ann", GRID, stages=FEW)
    assert len(project.repro()) == STAGES
    return project


@pytest.fixture(params=["folder", "s3", "ssh"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Remote:
    """An empty remote of each kind; the servers are shared."""
    if request.param == "folder":
        return Remote(str(tmp_path / "remote"))
    if request.param == "s3":
        keys = dict(request.getfixturevalue("s3"))
        url = keys.pop("ENDPOINT")
        return Remote(f"s3://team/{tmp_path.name}", ["--endpoint", url], keys, urlsplit(url).port)
    port, home = request.getfixturevalue("ssh")
    return Remote(f"ssh://127.0.0.1:{port}{tmp_path}/results", [], {"HOME": str(home)}, port)


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

    if remote.port:
        return  # what follows reads the run-cache, which lies on every kind of remote in the same way
    carol = ann.clone(tmp_path / "carol")
    (carol.folder / "dvc.lock").unlink()
    text = ok(carol, remote, "pull")
    assert f"{STAGES} stages restored, 0 left to compute" in text
    assert carol.repro() == []
    assert carol.artifacts() == ann.artifacts()


@pytest.mark.parametrize("remote", ["folder"], indirect=True)
def test_what_else_is_tracked_in_the_project_comes_along_and_the_flow_passes_it_over(
    computed: LightProject, remote: Remote, tmp_path: Path
) -> None:
    """A file of `dvc add`, a stage of the user's own beside ours, and one in another folder."""
    ann = computed.copy(tmp_path / "ann")
    before = read_dag(ann.folder, load_params(ann.folder / "params.yaml")).stages
    (ann.folder / "pairs.jsonl").write_text("{}")
    dvc = yaml.safe_load((ann.folder / "dvc.yaml").read_text())
    dvc["stages"]["deploy"] = {"cmd": ["echo --model mistral", "cp pairs.jsonl shipped"]}
    dvc["stages"]["deploy"] |= {"deps": ["elsewhere/copied"], "outs": ["shipped"]}
    (ann.folder / "dvc.yaml").write_text(yaml.safe_dump(dvc, sort_keys=False))
    (ann.folder / "elsewhere").mkdir()
    copied = {"cmd": "cp ../pairs.jsonl copied", "deps": ["../pairs.jsonl"], "outs": ["copied"]}
    (ann.folder / "elsewhere/dvc.yaml").write_text(yaml.safe_dump({"stages": {"copy": copied}}))
    for command in (["add", "pairs.jsonl"], ["repro", "--quiet", "--pull"]):
        done = ann.run("dvc", *command)
        assert done.code == 0, done.text
    stages = read_dag(ann.folder, load_params(ann.folder / "params.yaml")).stages
    deploy = next(stage for stage in stages if stage.name == "deploy")
    assert {stage.name for stage in stages} == {stage.name for stage in before} | {"deploy"}
    assert (deploy.needs, deploy.model, deploy.changed) == ((), None, False)
    assert [stage for stage in stages if stage != deploy and stage not in before] == []

    ok(ann, remote, "share", remote.url)
    ann.commit("share")
    ok(ann, remote, "push")
    bob = ann.clone(tmp_path / "bob")
    assert "0 left to compute" in ok(bob, remote, "pull")
    assert (bob.folder / "pairs.jsonl").read_text() == "{}" == (bob.folder / "shipped").read_text()


@pytest.mark.parametrize("remote", ["folder"], indirect=True)
def test_an_older_version_of_a_tracked_file_gives_way_and_an_edit_stays(
    computed: LightProject, remote: Remote, tmp_path: Path
) -> None:
    ann = computed.copy(tmp_path / "ann")
    (ann.folder / "elsewhere").mkdir()
    copied = {"cmd": "cp ../pairs.jsonl copied", "deps": ["../pairs.jsonl"], "outs": ["copied"]}
    (ann.folder / "elsewhere/dvc.yaml").write_text(yaml.safe_dump({"stages": {"copy": copied}}))

    def compute(text: str) -> None:
        (ann.folder / "pairs.jsonl").write_text(text)
        ann.sh("dvc", "add", "--quiet", "pairs.jsonl")
        ann.sh("dvc", "repro", "--quiet", "elsewhere/dvc.yaml")
        ann.commit(text)

    def bobs() -> tuple[str, str, str]:
        files = [bob.folder / name for name in ("pairs.jsonl", "elsewhere/copied")]
        return *(file.read_text() for file in files), bob.sh("git", "status", "--porcelain")

    ok(ann, remote, "share", remote.url)
    compute("old")
    ok(ann, remote, "push")
    bob = ann.clone(tmp_path / "bob")
    ok(bob, remote, "pull")
    assert bobs() == ("old", "old", "")

    compute("new")
    bob.sh("git", "pull", "--quiet")
    done = bob.restorelcc("pull")
    assert done.code == 1, done.text
    assert "pairs.jsonl is not what pairs.jsonl.dvc names, and neither the cache nor the remote has" in done.text
    assert bobs() == ("old", "old", ""), "dvc.lock keeps the entries of the new version"
    ok(ann, remote, "push")
    assert "0 left to compute" in ok(bob, remote, "pull")
    assert bobs() == ("new", "new", "")

    (bob.folder / "pairs.jsonl").write_text("edited")
    assert "pairs.jsonl was edited and stays as it is: `dvc add pairs.jsonl` keeps" in ok(bob, remote, "pull")
    assert (bob.folder / "pairs.jsonl").read_text() == "edited"


def test_a_stage_reads_a_tracked_file_through_the_links_of_data_inputs(tmp_path: Path) -> None:
    """Of which DVC's graph has no edge."""
    tracked, folder = tmp_path / "pairs.jsonl", tmp_path / "data/inputs/mine"
    (folder / "calibration").mkdir(parents=True)
    for name in ("instructions", "calibration/00000-pairs.jsonl"):
        (folder / name).symlink_to(tracked)
    (folder / "heldout").symlink_to(tmp_path / "heldout.jsonl")
    with chdir(tmp_path):
        for name, expected in (("instructions", True), ("calibration", True), ("heldout", False)):
            stage = SimpleNamespace(deps=[SimpleNamespace(fs_path=str(folder / name))])
            assert _links_to(stage, [tracked]) is expected
            assert not _links_to(stage, [])


@pytest.mark.parametrize("locked", [False, True])
def test_a_result_that_is_here_alone_stays_and_others_are_restored(
    locked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stage that was killed before DVC took its result, and that a colleague has run since, with other bytes."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    root = tmp_path / "project"
    root.mkdir()
    texts = {"first": "in.txt", "second": "first.txt", "other": "in.txt"}
    stages = {
        name: {"cmd": f"echo {name} > {name}.txt", "deps": [dep], "outs": [f"{name}.txt"]}
        for name, dep in texts.items()
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (root / "in.txt").write_text("in")
    with chdir(root), Repo.init(no_scm=True) as repo:
        repo.reproduce()
    for name in ("second.txt", "other.txt"):
        (root / name).unlink()
    (root / "first.txt").unlink()
    (root / "first.txt").write_text("another result")
    if not locked:
        (root / "dvc.lock").unlink()
    found = restore_from_cache(root, "none", download=False)
    assert found == (1, 0, ["first", "second"])
    assert (root / "other.txt").read_text() == "other\n"
    assert (root / "first.txt").read_text() == "another result"
    told = "note: first is not restored, because the cache does not have first.txt as it is here: `dvc commit --force"
    assert told in capsys.readouterr().err
    (root / "first.txt").unlink()
    assert restore_from_cache(root, "none", download=False) == (2, 0, [])
    assert (root / "first.txt").read_text() == "first\n"


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


PATIENCE = 3  # seconds; 10 where the server must be seen to answer meanwhile, also on a busy machine
SILENT = "did not answer within"


@pytest.mark.parametrize(
    ("remote", "command", "one", "said"),
    [
        ("ssh", "share", False, SILENT),
        ("ssh", "push", False, SILENT),
        ("s3", "push", True, "nothing was sent or received for 10 s"),
        pytest.param("s3", "pull", False, SILENT, marks=pytest.mark.slow),
    ],
    indirect=["remote"],
)
def test_a_remote_that_hangs_is_one_sentence_within_the_patience(
    computed: LightProject, remote: Remote, tmp_path: Path, command: str, one: bool, said: str
) -> None:
    """It takes the connection and never says a word, or says no more in the middle; `one`: it takes new ones."""
    assert remote.port
    ann = computed.copy(tmp_path / "ann")
    if command != "share":
        ok(ann, remote, "share", remote.url, *remote.options)
    if command == "pull":
        ok(ann, remote, "push")
        shutil.rmtree(ann.folder / ".dvc/cache")
    cutter = Cutter(
        remote.port, after=60_000 if one else 0 if command == "share" else 30_000, hang="one" if one else True
    )
    address, *options = (text.replace(f":{remote.port}", f":{cutter.port}") for text in (remote.url, *remote.options))
    config = ann.folder / ".dvc/config"
    before = config.read_text()
    # The S3 library gives a connection up after `read_timeout`, and takes another one: here, after it was told.
    longer = before.replace("read_timeout = 15", "read_timeout = 300") if one else before
    config.write_text(longer.replace(f":{remote.port}", f":{cutter.port}"))
    given = (command, address, *options) if command == "share" else (command,)
    began = time.monotonic()
    # DVC as a process of its own and no fork: by its number it is known who holds the lock, and what stands still.
    alone = {"LIGHT_PYTHON": sys.executable, "RESTORELCC_REMOTE_SECONDS": "10" if one else str(PATIENCE)}
    done = ann.restorelcc(*given, **remote.environment, **alone)
    took = time.monotonic() - began
    cutter.mend()
    cutter.close()
    assert cutter.cut
    assert (done.code, said in done.text.splitlines()[-1]) == (2, True), done.text
    assert "Traceback" not in done.text
    assert took < 60, "it is some seconds, and the start of several commands on a busy machine"
    if command == "push":
        config.write_text(before)
        ok(ann, remote, "push")


SOURCES = "data/metrics/tiny/sources.json"


def corrupt(remote: Remote, folder: Path, digest: str) -> None:
    """Change the last byte of an object where the remote keeps it."""
    name = f"files/md5/{digest[:2]}/{digest[2:]}"
    if remote.url.startswith("s3://"):
        keys = {key: remote.environment[key.upper()] for key in ("aws_access_key_id", "aws_secret_access_key")}
        key = f"{urlsplit(remote.url).path[1:]}/{name}"
        held = boto3.resource("s3", endpoint_url=remote.options[1], **keys).Object("team", key)
        held.put(Body=held.get()["Body"].read()[:-1] + b"?")
        return
    file = (folder if "://" in remote.url else Path(remote.url)) / name
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize("remote", ["folder", "s3"], indirect=True)
def test_a_corrupted_object_is_refused(computed: LightProject, remote: Remote, tmp_path: Path) -> None:
    ann = computed.copy(tmp_path / "ann")
    ok(ann, remote, "share", remote.url, *remote.options)
    ann.commit("share")
    ok(ann, remote, "push")
    lock = (ann.folder / "dvc.lock").read_text().split(f"path: {SOURCES}")[1]
    corrupt(remote, tmp_path / "results", lock.split("md5: ")[1].split()[0])
    bob = ann.clone(tmp_path / "bob")
    done = bob.restorelcc("pull", **remote.environment)
    assert done.code == 1, done.text
    assert "1 files of dvc.lock are missing or damaged in the remote" in done.text
    assert f"the first is {SOURCES}" in done.text
    assert "Traceback" not in done.text
    assert not (bob.folder / SOURCES).exists()
    ran = bob.repro()
    assert ran == ["corpus@tiny"], "it is computed, not taken, and what follows comes from the run-cache"
    assert bob.artifacts() == ann.artifacts()


OF_A_FOLDER = [[*verb, "--root", "versions"] for verb in (["share", "/nowhere"], ["push"], ["pull"])]
BAD = [
    (["push"], "no remote is configured: run `restorelcc share URL`"),
    (["pull", "--remote", "elsewhere"], "remote 'elsewhere' is unknown: known are none"),
    (["share", "ftp://host/path"], "a remote at ftp:// is not supported"),
    (["share", "ssh://me:secret@host/path"], "holds a password"),
    (["share", "s3://"], "names no bucket"),
    (["share", "folder", "--endpoint", "http://x"], "--endpoint is the address of an S3 server"),
    (["push", "--root", "/"], "is not a DVC project"),
    *((verb, "/project/versions is a folder of the project ") for verb in OF_A_FOLDER),
    (["pull", "--root", "nowhere"], "--root nowhere is not a folder: correct its path"),
    (["share", ""], "the remote has no address"),
    (["share", "."], "is the project's own folder"),
    (["share", "data/remote"], "is the project's own folder"),
    (["share", "dvc.yaml/remote"], "dvc.yaml is not a folder"),
]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> LightProject:
    return LightProject(tmp_path_factory.mktemp("bare") / "project")


@pytest.mark.parametrize(("command", "sentence"), BAD)
def test_bad_input_is_one_sentence(bare: LightProject, command: list[str], sentence: str) -> None:
    before = (bare.folder / ".dvc/config").read_text()
    with chdir(bare.folder), pytest.raises(BadInput) as caught:
        app(command, standalone_mode=False)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert (bare.folder / ".dvc/config").read_text() == before


def test_a_remote_without_credentials_or_server_is_one_sentence(tmp_path: Path, s3: dict[str, str]) -> None:
    project = LightProject(tmp_path / "project", stages=FEW)
    keys = dict(s3)
    endpoint = ["--endpoint", keys.pop("ENDPOINT")]
    done = project.restorelcc("share", "s3://team/x", *endpoint, AWS_EC2_METADATA_DISABLED="true")
    assert (done.code, "set AWS_ACCESS_KEY_ID" in done.text) == (2, True), done.text
    done = project.restorelcc("share", "s3://nobody/x", *endpoint, **keys)
    assert (done.code, "cannot be used" in done.text) == (2, True), done.text
    project.sh("dvc", "remote", "add", "--default", "share", "s3://team/x")
    project.sh("dvc", "remote", "modify", "share", "endpointurl", f"http://127.0.0.1:{free_port()}")
    done = project.restorelcc("push", **keys)
    assert (done.code, "check the address and that the server runs" in done.text) == (2, True), done.text
    assert len(done.text.strip().splitlines()) == 1


def test_a_folder_that_is_not_there_or_takes_nothing_is_one_sentence(
    bare: LightProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push would make a folder that nobody else sees, in place of the disk that is not mounted."""
    project, remote = bare.copy(tmp_path / "copy"), tmp_path / "disk" / "remote"
    with chdir(project.folder):
        app(["share", str(remote)], standalone_mode=False)
        (tmp_path / "disk").rename(tmp_path / "away")
        for verb in ("push", "pull"):
            with pytest.raises(BadInput, match="remote is not there; is its disk mounted"):
                app([verb], standalone_mode=False)
        assert not remote.exists()
        (tmp_path / "away").rename(tmp_path / "disk")
        for place in ("remote", "remote/files/md5", "remote/files/md5/ab", "remote/runs/ab"):
            (tmp_path / "disk" / place).mkdir(parents=True, exist_ok=True)
            monkeypatch.setattr(
                "restorelcc.pipeline.remotes.why_not_writable",
                lambda path, place=place: f"{path} is read-only" if str(path).endswith(place) else None,
            )
            with pytest.raises(BadInput, match=rf"{place} is read-only\)\W+check the folder's owner and permissions"):
                app(["push"], standalone_mode=False)


def test_a_folder_of_a_group_by_its_relative_path_serves_all_of_the_group_and_every_clone(
    computed: LightProject, tmp_path: Path
) -> None:
    ann, team = computed.copy(tmp_path / "ann"), tmp_path / "team"
    team.mkdir()
    team.chmod(0o2775)
    before = os.umask(0o022)
    try:
        assert ann.restorelcc("share", "../team").code == 0
        assert f"url = {team}" in (ann.folder / ".dvc/config").read_text()
        ann.commit("share")
        assert ann.restorelcc("push").code == 0
    finally:
        os.umask(before)
    made = [path for path in team.rglob("*") if path.is_dir()]
    assert any(path.parent.name == "runs" for path in made)
    assert [path for path in made if not path.stat().st_mode & stat.S_IWGRP] == []
    (tmp_path / "deep" / "below").mkdir(parents=True)
    bob = ann.clone(tmp_path / "deep" / "below" / "bob")
    assert "0 left to compute" in bob.restorelcc("pull").text
    assert bob.artifacts() == ann.artifacts()


def test_a_push_of_what_nobody_has_any_more_says_so(computed: LightProject, tmp_path: Path) -> None:
    ann = computed.copy(tmp_path / "ann")
    assert ann.restorelcc("share", str(tmp_path / "remote")).code == 0
    lock = (ann.folder / "dvc.lock").read_text().split(f"path: {SOURCES}")[1]
    digest = lock.split("md5: ")[1].split()[0]
    lost = ann.folder / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    content = lost.read_bytes()
    lost.unlink()
    done = ann.restorelcc("push")
    assert done.code == 1, done.text
    assert f"1 files of dvc.lock are neither here nor in the remote, the first is {SOURCES}" in done.text
    lost.write_bytes(content)
    assert ann.restorelcc("push").code == 0
    lost.unlink()
    assert ann.restorelcc("push").code == 0, "the remote has it"


def test_a_push_that_a_full_disk_ends_says_so(
    bare: LightProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = bare.copy(tmp_path / "copy")
    with chdir(project.folder):
        app(["share", str(tmp_path / "remote")], standalone_mode=False)
        monkeypatch.setattr("restorelcc.pipeline.watched.dvc", lambda *_, **__: 1)
        with pytest.raises(StageFailed, match="did not complete: run it again"):
            app(["push"], standalone_mode=False)
        monkeypatch.setattr("restorelcc.pipeline.remotes._LEAST_ROOM", 2**62)
        with pytest.raises(StageFailed, match=r"did not complete: the disk of .*remote/files/md5 is full"):
            app(["push"], standalone_mode=False)


def test_a_push_notes_tracked_files_that_were_edited(
    bare: LightProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = bare.copy(tmp_path / "copy")
    (project.folder / "tasks").mkdir()
    (project.folder / "tasks/one.yaml").write_text("task: one\n")
    project.set("models.tiny.tasks", ["tasks"])
    project.sh("dvc", "add", "tasks")
    sentence = "`tasks` is not what tasks.dvc names: run `dvc add tasks` and commit it"
    monkeypatch.setattr("restorelcc.pipeline.watched.dvc", lambda *_, **__: 0)
    with chdir(project.folder):
        app(["share", str(tmp_path / "remote")], standalone_mode=False)
        app(["push"], standalone_mode=False)
        assert sentence not in capsys.readouterr().err
        (project.folder / "tasks/one.yaml").write_text("task: two\n")
        app(["push"], standalone_mode=False)
    assert sentence in capsys.readouterr().err


def test_a_remote_takes_the_place_of_one_of_another_kind(bare: LightProject, tmp_path: Path) -> None:
    """Nothing of the first stays: DVC refuses settings of S3 for a folder."""
    project = bare.copy(tmp_path / "copy")
    config = project.folder / ".dvc/config"
    config.write_text(
        "[core]\n    remote = share\n['remote \"share\"']\n    url = s3://team/x\n    connect_timeout = 10\n"
    )
    with chdir(project.folder):
        app(["share", str(tmp_path / "remote")], standalone_mode=False)
    assert f"url = {tmp_path}/remote" in config.read_text()
    assert "connect_timeout" not in config.read_text()
