"""Artifacts: byte-identical for equal content, whole or not at all, refused when they do not belong together."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from ruamel.yaml import YAML
from safetensors import safe_open

from restorelcc.activations.store import layer_file, read_layer, read_layout
from restorelcc.base.digest import expect_digest, file_digest, json_digest, model_digest
from restorelcc.base.documents import read_json, write_json, yaml_text
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.publish import Scratch, delete_left, published
from restorelcc.base.tables import read_texts, write_texts
from restorelcc.models.heads import HeadLayout
from restorelcc.models.tensors import read_tensors, write_tensors
from restorelcc.release.folders import published_folder
from tests.activations import write_layer
from tests.dag import ROOT

METADATA = {name: name * 2 for name in ("model", "layers", "heads", "dense", "pruned", "text", "zeta", "alpha")}


def test_tensor_files_keep_their_content_and_sort_their_header(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 4), "a": torch.arange(5, dtype=torch.int32)}
    write_tensors(tmp_path / "one.safetensors", tensors, METADATA)
    write_tensors(tmp_path / "two.safetensors", tensors, dict(reversed(METADATA.items())))
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    with safe_open(tmp_path / "one.safetensors", framework="pt") as file:  # as any other reader sees it
        assert {key: value for key, value in file.metadata().items() if key != "sha256"} == METADATA
        assert all(torch.equal(file.get_tensor(name), value) for name, value in tensors.items())
    found, metadata = read_tensors(tmp_path / "one.safetensors", ("a",))
    assert torch.equal(found["a"], tensors["a"])
    assert metadata == METADATA


@pytest.mark.parametrize("fails", ["sync", "rename"])
def test_what_an_output_replaces_is_there_where_it_cannot_take_its_place(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk says so when the content is synced; an interrupt comes at any moment."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    rename = Path.replace

    def full(path: Path) -> None:
        assert (out / "old").is_file(), "the old one has stepped aside before the new one is on the disk"
        raise OSError(errno.ENOSPC, "No space left on device")

    def interrupted(path: Path, target: Path) -> Path:
        if target == out and (path / "new").is_file():
            raise KeyboardInterrupt
        return rename(path, target)

    if fails == "sync":
        monkeypatch.setattr("restorelcc.release.folders.sync_all", full)
    else:
        monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises((OSError, KeyboardInterrupt)), published_folder(out, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["old"]
    monkeypatch.undo()
    with published_folder(out, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in out.iterdir()] == ["new"]


def test_a_missing_or_damaged_tensor_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is missing"):
        read_tensors(tmp_path / "none.safetensors", ())
    write_tensors(tmp_path / "some.safetensors", {"a": torch.zeros(9)}, {})
    with pytest.raises(BadInput, match="has no tensor b"):
        read_tensors(tmp_path / "some.safetensors", ("b",))
    (tmp_path / "some.safetensors").write_bytes((tmp_path / "some.safetensors").read_bytes()[:-8])
    with pytest.raises(BadInput, match="not a readable safetensors"):
        read_tensors(tmp_path / "some.safetensors", ("a",))


def test_activations_are_fixed_size_lists_that_come_back_by_role(tmp_path: Path) -> None:
    layout = HeadLayout(layers=3, heads=4, head_dim=6)
    roles = {role: torch.randn(5, layout.width) for role in ("question", "positive", "negative")}
    for layer in range(3):
        write_layer(tmp_path, layer, [3, 1, 4, 1, 5], roles, layout, {"model": "m", "text": "t", "checkpoint": "c"})
    assert torch.equal(read_layer(tmp_path, 1, "negative", layout), roles["negative"].reshape(5, 4, 6))
    schema = pq.read_schema(layer_file(tmp_path, 2))
    assert str(schema.field("question").type) == "fixed_size_list<element: float>[24]"
    assert schema.names == ["sample_id", "question", "positive", "negative"]
    assert {k.decode(): v.decode() for k, v in schema.metadata.items() if not k.startswith(b"sha256")} == {
        **{"layer": "2", "layers": "3", "heads": "4", "head_dim": "6"},
        **{"model": "m", "text": "t", "checkpoint": "c"},
    }
    assert read_layout(tmp_path)[0] == layout
    with pytest.raises(BadInput, match="is missing"):
        read_layer(tmp_path, 7, "question", layout)


def test_outputs_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    folder, file = layout.data / "some/folder", layout.data / "some/file.json"
    with published(layout, folder, file) as (scratch_folder, scratch_file):
        scratch_folder.mkdir()
        write_texts(scratch_folder / "texts.parquet", ["old"])
        write_json(scratch_file, {"old": 1})
        assert not layout.data.exists()
    with pytest.raises(KeyboardInterrupt), published(layout, folder, file) as (scratch_folder, scratch_file):
        scratch_folder.mkdir()
        write_json(scratch_file, {"new": 1})
        raise KeyboardInterrupt
    assert read_texts(folder / "texts.parquet") == ["old"]
    assert read_json(file) == {"old": 1}
    with published(layout, folder) as (scratch_folder,):
        scratch_folder.mkdir()
    assert list(folder.iterdir()) == []
    assert list(layout.work.iterdir()) == []


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    left = layout.work / "write-killed"
    (left / "0-model").mkdir(parents=True)
    with published(layout, layout.data / "one.json") as (one,):
        assert not left.exists()
        with published(layout, layout.data / "two.json") as (two,):
            assert one.parent.is_dir(), "this process is alive"
            write_json(two, {})
        write_json(one, {})
    assert sorted(path.name for path in layout.data.iterdir()) == ["one.json", "two.json"]
    assert not list(layout.work.glob("write-*"))


def test_the_digest_of_a_value_stays_what_artifacts_carry() -> None:
    digest = "857f16781220ca33e3d96700399ebbb8246ae80ea40d4c0bb09665a5a563511b"
    assert json_digest({"b": [1, 2.5], "a": "ä"}) == json_digest({"a": "ä", "b": [1, 2.5]}) == digest


def test_digests_see_content_and_refuse_strangers(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "config.json", {"x": 1})
    write_tensors(tmp_path / "a" / "model.safetensors", {"w": torch.zeros(2)}, {})
    before = model_digest(tmp_path / "a")
    write_json(tmp_path / "a" / "sparsity.json", {"not": "part of the model"})
    assert model_digest(tmp_path / "a") == before
    write_tensors(tmp_path / "a" / "model.safetensors", {"w": torch.ones(2)}, {})
    after = model_digest(tmp_path / "a")
    assert after != before
    expect_digest("same", after, model_digest(tmp_path / "a"))
    with pytest.raises(BadInput, match=r"trained for another pruned model .*do not belong together"):
        expect_digest("trained for another pruned model", before, after)
    with pytest.raises(BadInput, match="is missing"):
        file_digest(tmp_path / "nowhere")


def test_json_never_holds_nan_and_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(BadInput, match="not valid JSON"):
        read_json(tmp_path / "broken.json")


def test_an_old_folder_stays_where_the_disk_is_full_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, folder = Layout(tmp_path), tmp_path / "data" / "m"
    folder.mkdir(parents=True)
    (folder / "old").write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"), published(layout, folder) as (path,):
        path.mkdir()
        (path / "new").write_text("new")
    assert [each.name for each in folder.iterdir()] == ["old"]


def test_a_scratch_folder_goes_with_its_object_and_after_a_kill(tmp_path: Path) -> None:
    with Scratch(tmp_path / "work", "datasets") as folder:
        (Path(folder) / "rows").write_text("x")
        assert delete_left(tmp_path / "work") == 0, "a living process has it"
    assert not any((tmp_path / "work").iterdir())
    code = (
        "import os, sys; from restorelcc.base.publish import *; s = Scratch(Path(sys.argv[1]), 'offload'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "work")], cwd=ROOT, check=False)
    assert [path.name[:14] for path in (tmp_path / "work").iterdir()] == ["write-offload-"]
    assert delete_left(tmp_path / "work") == 1


@pytest.mark.parametrize("text", ["12e4567", "0o17", "1_0", "-3", ".5", "1e5", "yes", "on", "~", "", "a: b", "no"])
def test_yaml_that_is_written_is_text_to_readers_of_both_versions(text: str) -> None:
    written = yaml_text({"revision": text, "count": 3, "rate": 1e-05})
    for version in ("1.1", "1.2"):
        reader = YAML(typ="safe", pure=True)
        reader.version = version
        assert reader.load(written) == {"revision": text, "count": 3, "rate": 1e-05}
