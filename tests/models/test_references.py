"""Checkpoints found through a reference: pinned by digests of weights, config and tokenizer, refused once changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from restorelcc.base import digest
from restorelcc.base.digest import PARTS, cached_file_digest, file_digest, folder_digests, model_digest
from restorelcc.base.documents import write_document
from restorelcc.base.errors import BadInput
from restorelcc.base.stock_files import TOKENIZER_FILES, is_of_the_tokenizer
from restorelcc.models.checkpoints import load_model, load_tokenizer, local_folder, save_checkpoint, write_reference
from restorelcc.models.hub import Repository
from restorelcc.models.references import Pinned, pinned_source
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.release.provenance import path_digest
from tests import pico
from tests.dag import ROOT

CPU = torch.device("cpu")


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A user's checkpoint, and `model`, a reference to it."""
    save_checkpoint(tmp_path / "given", pico.pico(), pico.word_tokenizer())
    write_reference(tmp_path / "model", pinned_source("key", str(tmp_path / "given"), None, tmp_path))
    return tmp_path / "given"


@pytest.mark.parametrize("source", ["/nowhere/model", "./model", "../model", "~/nowhere", "models/mine/pruned"])
@pytest.mark.parametrize("offline", [True, False])
def test_a_path_that_is_no_folder_is_not_asked_of_the_hub(
    source: str, offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with pytest.raises(BadInput) as caught:
        pinned_source("models.mine", source, None, tmp_path)
    assert str(caught.value) == (
        f"models.mine.source is {source!r}, which is not a folder: correct the path, or give an id of the hub, "
        "<owner>/<name>"
    )


def test_a_reference_to_the_hub_is_the_snapshot_of_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def fetch(repository: Repository, commit: str) -> Path:
        asked.append((repository.name, commit))
        return tmp_path

    monkeypatch.setattr("restorelcc.models.references.fetch_model", fetch)
    write_reference(tmp_path / "model", Pinned("some/model", "abc123", {"config.json": "id"}, None))
    assert local_folder(tmp_path / "model", weights=False) == tmp_path
    assert asked == [("some/model", "abc123")]


def test_a_reference_to_a_folder_that_is_gone_says_so(given: Path) -> None:
    given.rename(given.with_name("moved"))
    with pytest.raises(BadInput, match="which is not there"):
        local_folder(given.with_name("model"))


def test_a_reference_without_digests_says_so(given: Path) -> None:
    path = given.with_name("model") / "model_ref.json"
    write_document(path, {"source": str(given), "revision": "abc"})
    with pytest.raises(BadInput, match=r"written by an earlier version, .* run `dvc repro`"):
        local_folder(given.with_name("model"))


CHANGES = {
    "weights": ("model.safetensors", "weights"),
    "config": ("config.json", "config"),
    "generation config": ("generation_config.json", "config"),
    "tokenizer": ("tokenizer.json", "tokenizer"),
    "its config": ("tokenizer_config.json", "tokenizer"),
    "chat template": ("chat_template.jinja", "tokenizer"),
    "another chat template": ("additional_chat_templates/tools.jinja", "tokenizer"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_changed_is_refused_with_the_part_that_did(change: str, given: Path) -> None:
    name, part = CHANGES[change]
    model = given.with_name("model")
    assert local_folder(model) == given
    assert path_digest(model) == model_digest(model)
    path = given / name
    if name == "model.safetensors":
        stored_tensors(given)["model.norm.weight"].overwrite(torch.zeros(pico.WIDTH))
    elif path.is_file():
        path.write_text(path.read_text() + " ")
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{{ messages }}")
    now = pinned_source("key", str(given), None, given.parent)
    recorded = json.loads((model / "model_ref.json").read_text())
    assert recorded["revision"] != now.revision and now.digests is not None
    assert [each for each in PARTS if recorded["digests"][each] != now.digests[each]] == [part]
    for read in (
        local_folder,
        load_tokenizer,
        model_digest,
        path_digest,
        lambda it: load_model(it, torch.float32, CPU),
    ):
        with pytest.raises(BadInput, match=rf"given has changed since .*model_ref\.json .*\({part}\).*`dvc repro`"):
            read(model)


def test_what_lies_beside_the_model_is_no_part_of_it(given: Path) -> None:
    before = folder_digests(given, None)
    for name in ("README.md", "trainer_state.json", "sparsity.json", "notes.txt", "training_args.bin"):
        (given / name).write_text("{}")
    assert folder_digests(given, None) == before
    shutil.copytree(given, given.with_name("elsewhere"))
    assert folder_digests(given.with_name("elsewhere"), None) == before


def test_every_file_that_a_tokenizer_of_the_families_reads_counts() -> None:
    import transformers

    names = set(TOKENIZER_FILES)
    for family in pico.FAMILIES:
        if (found := TOKENIZER_MAPPING_NAMES.get(family)) is not None:
            names |= set(getattr(transformers, found).vocab_files_names.values())
    assert {"tokenizer.model", "merges.txt"} <= names
    assert all(is_of_the_tokenizer(Path(name)) for name in names)
    others = ("config.json", "generation_config.json", "model.safetensors", "README.md", "sub/tokenizer.json")
    assert not any(is_of_the_tokenizer(Path(name)) for name in others)


@pytest.mark.parametrize("place", ["model", "tokenizer", "tokenizer/model", "external/theirs"])
def test_dvc_sees_the_files_of_a_tokenizer_and_no_copies_of_them(place: str, tmp_path: Path) -> None:
    """A file that counts and that DVC does not see would be a change that no `dvc repro` ends."""
    from dvc.repo import Repo

    shutil.copy(ROOT / ".dvcignore", tmp_path)
    folder = tmp_path / "data" / "inputs" / "m" / place
    folder.mkdir(parents=True)
    names = [*TOKENIZER_FILES, "tokenizer.model.v3", "qwen.tiktoken", "tekken.json"]
    copies = ["tokenizer_config.json.bak", "tokenizer.json~", "vocab.old", "merges.txt.orig", "chat_template.txt"]
    for name in names + copies:
        (folder / name).write_text("x")
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        seen = [name for name in names + copies if not repo.dvcignore.is_ignored_file(str(folder / name))]
    assert seen == names
    assert [name for name in names + copies if is_of_the_tokenizer(Path(name))] == names


# --- digests of large files


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file above the limit, that was written a while ago."""
    path = tmp_path / "large.bin"
    path.write_bytes(b"a" * 2**20)
    _settle(path)
    return path


def _settle(path: Path) -> None:
    """Wait until the file's inode is old enough to be remembered."""
    time.sleep(max(0.0, (path.stat().st_ctime_ns + digest._SETTLED - time.time_ns()) / 1e9) + 0.05)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "_SETTLED", 2 * 10**8)


def _reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return file_digest(path)

    monkeypatch.setattr(digest, "file_digest", counted)
    return read


def test_a_large_file_is_read_once_and_again_when_it_changed(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, read = tmp_path / ".work", _reads(monkeypatch)
    first = cached_file_digest(large, work)
    assert first == cached_file_digest(large, work) == file_digest(large)
    assert len(read) == 1
    times = large.stat()
    with large.open("r+b") as file:
        file.write(b"b")
    os.utime(large, ns=(times.st_atime_ns, times.st_mtime_ns))  # as `cp --preserve` and rsync set it
    assert cached_file_digest(large, work) == file_digest(large) != first
    large.write_bytes(b"c" * 2**20)
    assert cached_file_digest(large, work) == file_digest(large)
    other = large.with_name("other.bin")
    other.write_bytes(b"d" * 2**20)
    other.replace(large)
    assert cached_file_digest(large, work) == file_digest(large)
    assert len(read) == 4


def test_a_file_that_was_written_just_now_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "_SETTLED", 60 * 10**9)
    path, read = tmp_path / "large.bin", _reads(monkeypatch)
    for content in (b"a", b"b"):  # within the clock's precision, perhaps
        path.write_bytes(content * 2**20)
        assert cached_file_digest(path, tmp_path / ".work") == file_digest(path)
    assert len(read) == 2 and not (tmp_path / ".work").exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}', '{"x": []}', '"text"', "null"])
def test_what_is_remembered_may_be_damaged(content: str, large: Path, tmp_path: Path) -> None:
    work = tmp_path / ".work"
    work.mkdir()
    (work / digest.REMEMBERED).write_text(content)
    assert cached_file_digest(large, work) == file_digest(large)
    assert str(large) in json.loads((work / digest.REMEMBERED).read_text())


def test_small_files_missing_ones_and_folders_that_cannot_be_written(large: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_text("x")
    assert cached_file_digest(small, tmp_path / ".work") == file_digest(small)
    assert not (tmp_path / ".work").exists()
    with pytest.raises(BadInput, match="is missing"):
        cached_file_digest(tmp_path / "nowhere", tmp_path)
    assert cached_file_digest(large, small) == file_digest(large), "the folder is a file: nothing can be kept there"


def test_processes_that_write_at_once_leave_a_whole_file(large: Path, tmp_path: Path) -> None:
    for number in range(6):
        shutil.copy(large, tmp_path / f"{number}.bin")
    _settle(tmp_path / "5.bin")
    code = (
        "import sys; from pathlib import Path; from restorelcc.base import digest; digest._SETTLED = 0\n"
        "for n in range(6): print(digest.cached_file_digest(Path(sys.argv[1]) / f'{n}.bin', Path(sys.argv[1]) / '.w'))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [process.communicate()[0] for process in running]
    assert all(process.returncode == 0 for process in running)
    assert set(" ".join(said).split()) == {file_digest(large)}
    assert set(json.loads((tmp_path / ".w" / digest.REMEMBERED).read_text())) <= {
        str(tmp_path / f"{number}.bin") for number in range(6)
    }
    assert [path.name for path in (tmp_path / ".w").iterdir()] == [digest.REMEMBERED]


def test_a_folder_of_weights_that_stayed_takes_no_reading(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".work").mkdir()
    monkeypatch.setattr(digest, "_LARGE", 0)
    _settle(given / "model.safetensors")
    model = given.with_name("model")
    local_folder(model)
    read = _reads(monkeypatch)
    assert local_folder(model) == given
    assert read == []
    (given / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match=r"\(tokenizer\)"):
        local_folder(model)
