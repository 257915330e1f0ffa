"""Folders of a stranger, given to the commands that read and write checkpoints: nothing outside is read or written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from restorelcc.__main__ import main
from restorelcc.base.digest import file_digest
from restorelcc.models.checkpoints import save_checkpoint
from tests import pico
from tests.release.export.restored import Pair, pair_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, Path]:
    """A pruned checkpoint with its compensation, and what `export` made of them."""
    folder = tmp_path_factory.mktemp("made")
    pair = pair_of(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["restorelcc", "export", *_of(pair), "--out", str(folder / "out")])
        with pytest.raises(SystemExit) as end:
            main()
    assert not end.value.code
    return pair, folder / "out"


def _of(pair: Pair) -> list[str]:
    return ["--pruned", str(pair.pruned), "--compensation", str(pair.compensation)]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def command(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["restorelcc", *map(str, arguments)])
        monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return int(code), capsys.readouterr().err

    return command


def _state(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _edited(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


def _named(section: str, name: str) -> Callable[[Any], None]:
    """original.json with a file or a text that goes by another name."""

    def change(content: Any) -> None:
        entries = content[section]
        entries[name] = entries[next(iter(entries))]

    return change


ORIGINALS: dict[str, Callable[[Any], Any]] = {
    "absolute weights": _named("files", "/ABSOLUTE/victim.safetensors"),
    "weights above": _named("files", "../victim.safetensors"),
    "weights above, further in": _named("files", "a/../../victim.safetensors"),
    "weights of another kind": _named("files", "victim.py"),
    "absolute text": _named("texts", "/ABSOLUTE/victim"),
    "text above": _named("texts", "../victim.safetensors.index.json"),
    "text of another kind": _named("texts", ".bashrc"),
    "text no text": lambda content: content["texts"].update({"config.json": 5}),
    "config a list": lambda content: content["texts"].update({"config.json": "[]"}),
    "config of no model": lambda content: content["texts"].update(
        {"config.json": '{"model_type": "llama", "hidden_size": -1}'}
    ),
    "no config": lambda content: content["texts"].pop("config.json"),
    "no header": lambda content: content["files"]["model.safetensors"].update(header="!!"),
    "header a number": lambda content: content["files"]["model.safetensors"].update(header=5),
    "no digest": lambda content: content["files"]["model.safetensors"].pop("sha256"),
    "files a list": lambda content: content.update(files=["/ABSOLUTE/victim"]),
    "files empty": lambda content: content.update(files={}),
    "a list": lambda content: [1],
    "null": lambda content: "null",
}


@pytest.mark.parametrize("what", ORIGINALS)
def test_taking_a_compensation_out_writes_nowhere_else(
    what: str, made: tuple[Pair, Path], tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    folder = tmp_path / "theirs" / "model"
    shutil.copytree(made[1], folder)
    _edited(folder / "restorelcc" / "original.json", ORIGINALS[what])
    text = (folder / "restorelcc" / "original.json").read_text().replace("/ABSOLUTE", str(tmp_path))
    (folder / "restorelcc" / "original.json").write_text(text)
    before = _state(tmp_path)
    code, told = run("compensation", "remove", folder, "--out", tmp_path / "out" / "model")
    assert code == 2 and told.count("\n") == 1, told
    assert _state(tmp_path) == before


RECORDS: dict[str, Callable[[Any], Any]] = {
    "file above": lambda record: record["files"].update({"../../secret": "0" * 64}),
    "absolute file": lambda record: record["files"].update({"/etc/hostname": "0" * 64}),
    "files a list": lambda record: record.update(files=[]),
    "a list": lambda record: [1],
    "made a number": lambda record: record.update(made=5),
    "tensor null": lambda record: record["tensors"].update({next(iter(record["tensors"])): None}),
    "parent null": lambda record: record["parents"].update(pruned=None),
    "parent's path a list": lambda record: record["parents"]["pruned"].update(path=[]),
    "route null": lambda record: record.update(route=None),
    "patterns": lambda record: record["sparsity"].update(patterns=5),
}


@pytest.mark.parametrize("what", RECORDS)
def test_a_record_of_a_stranger_is_one_sentence(
    what: str, made: tuple[Pair, Path], tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(made[1], folder)
    (tmp_path.parent / "secret").write_text("s")
    _edited(folder / "restorelcc.json", RECORDS[what])
    removes = "made" in what
    command = ("compensation", "remove", folder, "--out", tmp_path / "out") if removes else ("verify", folder)
    code, told = run(*command)
    said = [line for line in told.splitlines() if line and "verify record" not in line]  # a bar of progress
    assert code in (1, 2) and len(said) == 1 and said[0].startswith("restorelcc: "), told


@pytest.mark.parametrize("name", ["notes.txt", "LICENSE", "extra/notes.txt", "tokenizer_config.json"])
@pytest.mark.parametrize("verb", ["export", "apply", "remove", "verify", "inspect"])
def test_a_link_beside_the_weights_is_not_followed(
    name: str, verb: str, made: tuple[Pair, Path], tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    """Its target would land in the folder that is uploaded."""
    (tmp_path / "secret").write_text("{}")
    pair, done = made
    folder, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(done if verb in ("remove", "verify") else pair.pruned, folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "secret")
    commands: dict[str, tuple[object, ...]] = {
        "export": ("export", "--pruned", folder, "--compensation", pair.compensation, "--out", out),
        "apply": ("compensation", "apply", folder, pair.compensation, "--out", out),
        "remove": ("compensation", "remove", folder, "--out", out),
        "verify": ("verify", folder),
        "inspect": ("inspect", folder),
    }
    code, told = run(*commands[verb])
    assert code in (1, 2) and told.count("\n") == 1 and not out.exists(), told
    # Parents are compared by content before the folder is opened: a link in the place of a part is found first.
    assert "leads out of its folder" in told or "do not belong together" in told


def test_what_cannot_be_written_is_refused_before_it_is_trained(
    tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    """A Mistral whose attention sees 8 tokens back has no stock class with the biases."""
    model = pico.pico("mistral", sliding_window=8)
    save_checkpoint(tmp_path / "model", model, pico.word_tokenizer())
    (tmp_path / "pairs.jsonl").write_text('{"question": "w3", "response": "w4"}\n')
    command = ("restore", "--dense", tmp_path / "model", "--pruning", "wanda-0.5", "--out", tmp_path / "out")
    code, told = run(*command, "--instructions", tmp_path / "pairs.jsonl", "--calibration", tmp_path / "pairs.jsonl")
    assert code == 2 and "sliding window of 8 tokens" in told, told
    assert not (tmp_path / "out.work").exists()


@pytest.mark.parametrize("place", ["file", "file/x", "/dev/null/x", "x" * 300])
@pytest.mark.parametrize("option", ["--out", "--work"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_computed(
    option: str, place: str, made: tuple[Pair, Path], tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "pairs.jsonl").write_text('{"question": "w3", "response": "w4"}\n' * 9)
    places = {"--out": tmp_path / "out", "--work": tmp_path / "work"} | {option: tmp_path / place}
    given = ["--dense", made[0].pruned, "--pruning", "wanda-0.5", "--instructions", tmp_path / "pairs.jsonl"]
    options = [each for pair in places.items() for each in pair]
    code, told = run("restore", *given, "--calibration", tmp_path / "pairs.jsonl", *options)
    assert code == 2 and told.count("\n") == 1 and "internal error" not in told, told
    assert not (tmp_path / "out").exists() and not (tmp_path / "work" / "data").exists()
