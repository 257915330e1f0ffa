"""Names, links and addresses from elsewhere."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from restorelcc.base.errors import BadInput, ending
from restorelcc.base.names import check_links, check_name, check_without_credentials, inside, without_credentials

BAD: dict[str, Any] = {
    "absolute": "/etc/passwd",
    "above": "../x",
    "above, further in": "a/../../x",
    "itself": ".",
    "empty": "",
    "empty part": "a//b",
    "folder": "a/",
    "backslash": "..\\x",
    "nul": "a\0b",
    "escape": "a\x1b[31m",
    "newline": "a\nb",
    "turned around": "a\u202eb",
    "half a character": "a\ud800",
    "long": "a" * 256,
    "long in all": "/".join(["a" * 200] * 30),
    "number": 5,
    "null": None,
    "list": ["a"],
}


@pytest.mark.parametrize("name", BAD.values(), ids=BAD)
@pytest.mark.parametrize("nested", [False, True])
def test_what_is_no_plain_name_is_one_sentence(tmp_path: Path, name: Any, nested: bool) -> None:
    with pytest.raises(BadInput, match="the index") as caught:
        inside(tmp_path, name, "the index", nested=nested)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value) and len(str(caught.value)) < 300


def test_plain_names_are_joined(tmp_path: Path) -> None:
    assert inside(tmp_path, "model-00001-of-00002.safetensors", "x") == tmp_path / "model-00001-of-00002.safetensors"
    assert inside(tmp_path, "restorelcc/naïve.json", "x", nested=True) == tmp_path / "restorelcc" / "naïve.json"
    with pytest.raises(BadInput, match="without a path before them"):
        check_name("a/b", "x")


@pytest.mark.parametrize("where", ["file", "folder", "loop"])
def test_a_link_that_leads_out_is_neither_read_nor_written(tmp_path: Path, where: str) -> None:
    folder, secret = tmp_path / "folder", tmp_path / "secret"
    folder.mkdir()
    secret.mkdir()
    (secret / "key").write_text("s")
    target = {"file": secret / "key", "folder": secret, "loop": tmp_path / "loop"}[where]
    (folder / "a").symlink_to(target)
    if where == "loop":
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
    name = "a/key" if where == "folder" else "a"
    for check in (lambda: inside(folder, name, "x", nested=True), lambda: check_links(folder)):
        with pytest.raises(BadInput, match="is a link that leads out of its folder"):
            check()


def test_the_layouts_of_the_hub_and_of_dvc_are_made_of_links(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0ffee", tmp_path / "models--a--b" / "blobs"
    digest = "ab" * 15
    cached = tmp_path / "project" / ".dvc" / "cache" / "files" / "md5" / "cd" / digest
    out = tmp_path / "project" / "data" / "model"
    for folder in (snapshot / "extra", blobs, cached.parent, out):
        folder.mkdir(parents=True)
    for file in (blobs / "0123", cached, out / "real"):
        file.write_text("x")
    (snapshot / "config.json").symlink_to("../../blobs/0123")
    (snapshot / "extra" / "more.json").symlink_to("../../../blobs/0123")
    (out / "model.safetensors").symlink_to(cached)
    (out / "same").symlink_to("real")
    check_links(snapshot)
    check_links(out)
    (tmp_path / "linked").symlink_to(snapshot)
    check_links(tmp_path / "linked")
    assert inside(snapshot, "config.json", "x").read_text() == "x"
    (blobs / "0123").unlink()
    (blobs / "0123").symlink_to("/etc/hostname")  # a chain of links ends where its last one leads
    with pytest.raises(BadInput, match="leads out"):
        check_links(snapshot)
    (tmp_path / "project" / ".dvc").rename(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="leads out"):
        check_links(out)


@pytest.mark.parametrize(
    ("address", "shown", "held"),
    [
        ("https://user:token@host.example/a.git", "https://host.example/a.git", True),
        ("https://token@host.example:8443/a.git", "https://host.example:8443/a.git", True),
        ("http://user:pw@host", "http://host", True),
        ("ssh://git@host/a.git", "ssh://git@host/a.git", False),
        ("ssh://git:pw@host/a.git", "ssh://git@host/a.git", True),
        ("git@host.example:a/b.git", "git@host.example:a/b.git", False),
        ("https://host/a@b", "https://host/a@b", False),
        ("/home/me/a", "/home/me/a", False),
        ("", "", False),
    ],
)
def test_credentials_in_addresses(address: str, shown: str, held: bool) -> None:
    assert without_credentials(address) == shown
    if held:
        with pytest.raises(BadInput, match="holds a password or token") as caught:
            check_without_credentials("--endpoint", address)
        assert "token@" not in str(caught.value) and "pw" not in str(caught.value)
    else:
        check_without_credentials("--endpoint", address)


def test_a_sentence_is_one_line_whatever_names_are_in_it() -> None:
    assert ending(BadInput("a \x1b[2J\nb")) == ("error: a \\x1b[2J b", 2)
    do = "correct the path or its rights and run again"
    long = OSError(errno.ENAMETOOLONG, "File name too long", "x" * 400)
    assert ending(long) == (f"error: {'x' * 300} cannot be used (File name too long): {do}", 2)
    denied = PermissionError(errno.EACCES, "Permission denied", "x")
    assert ending(denied) == (f"failed: x cannot be used (Permission denied): {do}", 1)
