"""Seeded faults, each named by `restorelcc doctor` with its cure."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from restorelcc.pipeline.versions import write_version
from tests.flows.light import LightProject


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> LightProject:
    project = LightProject(tmp_path_factory.mktemp("doctor") / "project", {"head_ratio": [0.25]})
    project.sh("dvc", "repro", "--quiet", "corpus")
    return project


def test_a_sound_project_has_no_fault(sound: LightProject) -> None:
    done = sound.restorelcc("doctor", "--cache")
    assert (done.code, "fault " in done.text) == (0, False), done.text
    assert "dvc.lock is whole, 2 stages" in done.text


def test_looking_takes_less_than_three_seconds_of_computing(sound: LightProject, tmp_path: Path) -> None:
    project = sound.copy(tmp_path / "copy")
    (tmp_path / "remote").mkdir()
    project.sh("dvc", "remote", "add", "--default", "share", str(tmp_path / "remote"))
    project.sh("dvc", "remote", "modify", "share", "verify", "true")
    process = project.start(sys.executable, "-m", "restorelcc", "doctor")
    text, (_, status, used) = process.stdout.read() if process.stdout else "", os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    print(f"doctor: {used.ru_utime + used.ru_stime:.2f} CPU-s")
    assert process.returncode == 0 and "remote 'share' answers" in text, text
    assert used.ru_utime + used.ru_stime < 3


def test_every_seeded_fault_is_named_with_its_cure(sound: LightProject, tmp_path: Path) -> None:
    project = sound.copy(tmp_path / "copy")
    folder = project.folder
    write_version(folder, "numpy", "0.1")
    (folder / ".work").mkdir(exist_ok=True)
    (folder / ".work/write-left").mkdir()
    (tmp_path / "remote").mkdir()
    project.sh("dvc", "remote", "add", "--default", "share", str(tmp_path / "remote"))
    (folder / "dvc.lock").write_text("")
    (folder / ".dvc/tmp/rwlock").write_text("")
    cached = next(path for path in sorted((folder / ".dvc/cache/files/md5").glob("??/*")) if path.suffix != ".dir")
    cached.chmod(0o644)
    content = cached.read_bytes()
    cached.write_bytes(content + b"?")
    done = project.restorelcc("doctor", "--cache", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.code == 1
    for named in (
        "versions/ has 0.1: run `restorelcc versions`",
        f"1 scratch folders of killed stages lie in {folder}/.work: run `restorelcc doctor --fix`",
        "dvc.lock is empty or cut off: run `restorelcc doctor --fix`",
        "rwlock is empty or cut off, which stops every dvc command: run `restorelcc doctor --fix`",
        f"{cached.name} was altered, and a push would spread it",
        "its files are not verified: dvc remote modify share verify true",
        "no Prefect server answers at http://127.0.0.1:9/api",
    ):
        assert any(line.startswith("fault") and named in line for line in done.text.splitlines()), named + done.text
    assert "doctor found 7 faults" in done.text

    assert "numpy 0.1 -> " in project.restorelcc("versions").text
    done = project.restorelcc("doctor", "--fix", "--cache")
    assert (done.code, done.text.count("mended: ")) == (1, 4), done.text
    assert "doctor found 1 fault," in done.text, "what is left is the remote's"
    assert not list((folder / ".work").glob("write-*")) and not cached.exists()
    cached.write_bytes(content)
    assert project.sh("dvc", "repro", "--quiet", "corpus") == ""
    assert project.executed() == ["inputs@tiny"], "healed: the corpus came from the run-cache"
    project.sh("dvc", "config", "core.hardlink_lock", "true")
    assert "core.hardlink_lock is set, and a killed process keeps it" in project.restorelcc("doctor").text


def test_unfinished_work_of_no_model_is_named_and_deleted(sound: LightProject, tmp_path: Path) -> None:
    project = sound.copy(tmp_path / "copy")
    ours, by_hand, gone = (
        project.folder / f".work/{name}-{'a' * 16}"
        for name in ("compensate-tiny-wanda-0.5-0.25", "recover-tiny-wanda-0.3-lora", "compensate-tiny2-wanda-0.5-0.25")
    )
    words, gone_words = (project.folder / f".work/words/models.{name}" for name in ("tiny", "tiny-2"))
    for folder in (ours, by_hand, gone, words, gone_words):
        folder.mkdir(parents=True)
        (folder / "rate-0.02.safetensors").write_bytes(bytes(2**20))
    text = project.restorelcc("doctor").text
    for folder in (gone, gone_words):
        named = f"1.0 MiB of unfinished work lie in {folder}, of no model of params.yaml: `restorelcc doctor --fix`"
        assert named in text
    for folder in (ours, by_hand, words):
        assert f"1.0 MiB of unfinished work lie in {folder}: the next run of that stage goes on with it" in text
    assert project.restorelcc("doctor", "--fix", "--quiet").code == 0
    assert gone.is_dir() and gone_words.is_dir(), "`make repro` looks at nothing else"
    done = project.restorelcc("doctor", "--fix")
    assert f"mended: {gone} is gone" in done.text and f"mended: {gone_words} is gone" in done.text
    assert ours.is_dir() and by_hand.is_dir() and words.is_dir()
    assert not gone.exists() and not gone_words.exists()
