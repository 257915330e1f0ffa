"""JSON, YAML, Parquet and safetensors are opened in one place each, and whatever else a file holds is a sentence."""

import ast
import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from restorelcc.base import publish
from restorelcc.base.documents import parse_json, parse_yaml, read_document, read_json, read_yaml, write_document
from restorelcc.base.errors import BadInput
from restorelcc.base.manifest import MANIFEST, check_file, check_folder, write_manifest
from restorelcc.base.publish import put
from restorelcc.base.tables import TEXTS, read_table
from restorelcc.models.safetensors_header import ITEM_BYTES, LONGEST, encoded, read_header
from restorelcc.models.tensor_files import DTYPES
from restorelcc.pipeline.params import load_params
from tests.dag import PACKAGE, ROOT

# What opens a format, by the name it is called by; and where that may stand, with the reason.
OPENERS = {
    *("json.load", "json.loads", "json.JSONDecoder"),
    *("yaml.load", "yaml.safe_load", "yaml.load_all", "yaml.safe_load_all", "yaml.compose", "yaml.parse", "yaml.scan"),
    *("yaml.full_load", "yaml.unsafe_load", "pq.ParquetFile", "pq.ParquetDataset", "pq.read_table", "pq.read_schema"),
    *("pq.read_metadata", "pq.read_pandas", "pd.read_parquet", "pd.read_json", "safe_open", "load_file"),
    *(
        "torch.load",
        "np.load",
        "pickle.load",
        "pickle.loads",
        "joblib.load",
        "get_single_data",
        "safetensors.torch.load",
    ),
}
ALLOWED = {
    "base/documents.py": {"json.loads", "get_single_data"},  # the reader of JSON and YAML
    "base/tables.py": {"pq.ParquetFile"},  # the reader of Parquet
    "models/tensors.py": {"safe_open"},  # the reader of safetensors, after the header was checked
    "pipeline/renamed.py": {"yaml.compose"},  # where keys stand in a text that `read_yaml` has taken
    "release/verify/fresh.py": {"json.loads"},  # a script that knows nothing of the package; it reads what we wrote
    # A user's rows, whose messages name the line; numbers and repeated keys are the user's own.
    "stages/corpus/local.py": {"json.loads", "pq.ParquetFile"},
    # A package's own rows, in a gzip stream; only the documents in them are used.
    "base/package_items.py": {"json.loads"},
    "base/processes.py": {"json.loads"},  # DVC's rwlock, before anything is imported; what is no JSON names nobody
    "pipeline/workspace.py": {"json.loads"},  # the same file, to mend it
    "base/task_code.py": {"yaml.compose", "yaml.safe_load"},  # a stranger's task: its tags are looked for, none is made
    "pipeline/params_file.py": {"yaml.safe_load"},  # params.yaml, beside DVC's own parser
    "flows/model_job.py": {"json.loads"},  # what Prefect stored of its own run, no file
}


def _called(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            names |= {ast.unparse(node), node.attr}
        elif isinstance(node, ast.Name):
            names.add(node.id)
    return names & OPENERS


def test_every_format_is_opened_in_one_place() -> None:
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "flows").rglob("*.py")]
    found = {path.relative_to(PACKAGE if PACKAGE in path.parents else ROOT).as_posix(): _called(path) for path in files}
    assert {name: calls for name, calls in found.items() if calls} == ALLOWED


NO_JSON = {
    "not UTF-8": (b'{"a": "\xff"}', "not UTF-8 text .byte 7."),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8 text"),
    "cut": (b'{"a": ', "not valid JSON"),
    "empty": (b"", "not valid JSON"),
    "a key twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' appears twice"),
    "NaN": (b'{"a": NaN}', "NaN is no number"),
    "infinity": (b'{"a": [-Infinity]}', "-Infinity is no number"),
    "too large": (b'{"a": 1e999}', "1e999 is beyond"),
    "too many digits": (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "a list": (b"[1]", "holds a list, where an object"),
    "null": (b"null", "holds null, where an object"),
    "a text": (b'"x"', "holds a text, where an object"),
    "a number": (b"3", "holds a number, where an object"),
}


@pytest.mark.parametrize("case", NO_JSON)
def test_what_is_no_json_document_is_a_sentence(case: str, tmp_path: Path) -> None:
    content, message = NO_JSON[case]
    path = tmp_path / "x.json"
    path.write_bytes(content)
    for read in (read_json, read_document):
        with pytest.raises(BadInput, match=rf"x\.json .*{message}"):
            read(path)


def test_json_that_is_right_comes_back() -> None:
    assert parse_json('{"a": [1, 2.5, null, "\u2028"]}', "x") == {"a": [1, 2.5, None, "\u2028"]}
    assert parse_json(b"[1]", "x", list) == [1]


NO_YAML = {
    "not UTF-8": (b"a: \xff", "not UTF-8"),
    "a key twice": (
        b"a: 1\nb: 2\n'a': 3",
        "the key 'a' appears twice, in line 1 and in line 3|the key 'a' appears a second",
    ),
    "a number twice": (b"1: a\n0x1: b", "appears twice|a second time"),
    "a key twice below": (b"x:\n- {q: 1, q: 2}", "the key 'q' appears twice|the key 'q' appears a second"),
    "cut": (b"a: [1,", "not valid YAML"),
    "two documents": (b"a: 1\n---\nb: 1", "not valid YAML"),
    "no date": (b"a: 2026-99-99", "month must be"),
    "no number": (b"a: !!int ''", "not valid YAML"),
    "no truth": (b"a: !!bool x", "not valid YAML"),
    "Python": (b"a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
    "a control character": (b"a: \x00", "special characters"),
    "deep": (b"[" * 50_000, "nested too deeply"),
    "a list as key": (b"? [a]\n: 1", "unhashable"),
}


@pytest.mark.parametrize("case", NO_YAML)
def test_what_is_no_yaml_document_is_a_sentence(case: str, tmp_path: Path) -> None:
    content, message = NO_YAML[case]
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    for read in (read_yaml, load_params):
        with pytest.raises(BadInput, match=rf"params\.yaml .*{message}"):
            read(path)


def test_yaml_keeps_its_meaning() -> None:
    assert parse_yaml("x: &x {a: 1}\ny: {<<: *x, a: 2}\nz: 010\nw: yes", "x") == {
        **{"x": {"a": 1}, "y": {"a": 2}},
        **{"z": 8, "w": True},
    }
    with pytest.raises(BadInput, match=r"--set 'prune.samples=\[1' is not valid YAML"):
        load_params(ROOT / "params.yaml", ("prune.samples=[1",))


def _safetensors(path: Path, **changes: object) -> None:
    """A file whose second tensor's entry is changed."""
    header = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]} | changes,
    }
    path.write_bytes(encoded(header) + bytes(16))


BAD_ENTRIES = {
    "overlapping": ({"data_offsets": [4, 12]}, "b begins at byte 4, where the tensor before it ends at 8"),
    "a gap": ({"data_offsets": [12, 20]}, "b begins at byte 12"),
    "negative": ({"data_offsets": [-8, 0]}, "has the offsets"),
    "reversed": ({"data_offsets": [16, 8]}, "has the offsets"),
    "fractions": ({"data_offsets": [8.0, 16.0]}, "has the offsets"),
    "true": ({"data_offsets": [True, 9]}, "has the offsets"),
    "three": ({"data_offsets": [8, 12, 16]}, "has the offsets"),
    "beyond the file": ({"shape": [2**40], "data_offsets": [8, 8 + 2**42]}, "cut short"),
    "not what the shape says": ({"shape": [3]}, "takes 8 bytes, and its shape and dtype say 12"),
    "negative shape": ({"shape": [-1, -2]}, "has the shape"),
    "a shape of text": ({"shape": ["2"]}, "has the shape"),
    "no shape": ({"shape": None}, "has the shape"),
    "an unknown dtype": ({"dtype": "F33"}, "of the dtype 'F33', and known are F64"),
    "a list as dtype": ({"dtype": ["F32"]}, "of the dtype"),
    "another field": ({"x": 1}, "is not described by"),
}


@pytest.mark.parametrize("case", BAD_ENTRIES)
def test_a_header_is_checked_before_anything_in_it_is_used(case: str, tmp_path: Path) -> None:
    changes, message = BAD_ENTRIES[case]
    _safetensors(tmp_path / "x.safetensors", **changes)
    with pytest.raises(BadInput, match=rf"x\.safetensors is not a readable safetensors file .*{message}"):
        read_header(tmp_path / "x.safetensors")


def test_headers_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    good = save({"a": torch.ones(3), "b": torch.ones(2, dtype=torch.int64)}, {"format": "pt"})
    path.write_bytes(good)
    assert set(read_header(path)[0]) == {"a", "b", "__metadata__"}

    def framed(text: bytes) -> bytes:
        return len(text).to_bytes(8, "little") + text

    cases = {
        "too short": good[:5],
        "longer than the file": good[:40],
        "cut short": good[:-1],
        "too long": good + b"\0",
        "not a JSON object": framed(b" {}"),
        "not UTF-8": framed(b'{"\xff": 1}'),
        "appears twice": framed(
            b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
        ),
        "is not described by": framed(b'{"a":[]}'),
        "half of a character": framed(b'{"__metadata__":{"a":"\\ud800"}}'),
        "not text by key": framed(b'{"__metadata__":{"a":1}}'),
        "longer than the file ": (2**63).to_bytes(8, "little") + b"{}",
    }
    for message, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(BadInput, match=message.strip()):
            read_header(path)
    with path.open("wb") as file:
        file.write((LONGEST + 1).to_bytes(8, "little"))
        file.truncate(LONGEST + 100)  # a hole: nothing of it is on the disk
    with pytest.raises(BadInput, match="are the most"):
        read_header(path)


def test_every_dtype_of_safetensors_that_torch_has_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for name, dtype in DTYPES.items():
        path.write_bytes(save({"a": torch.zeros(4, dtype=torch.uint8).view(torch.uint8).repeat(8).view(dtype)}))
        assert read_header(path)[0]["a"]["dtype"] == name


def test_tables_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for content in (b"", b"PAR1", b"PAR1 nothing PAR1", b"\xff" * 99):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=r"x\.parquet is not a readable Parquet file"):
            read_table(path, TEXTS)


def test_a_folder_is_held_against_its_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    (folder / "tasks").mkdir(parents=True)
    for name in ("a", "b", "tasks/c"):
        (folder / name).write_text(name)
    check_folder(folder)  # without one there is nothing to be held against
    write_manifest(folder)
    before = (folder / MANIFEST).read_bytes()
    write_manifest(folder)
    assert (folder / MANIFEST).read_bytes() == before
    check_folder(folder)
    check_file(folder / "tasks" / "c")
    (folder / "a").write_text("b")  # swapped, or overwritten
    with pytest.raises(BadInput, match=r"corpus/a was changed since it was written"):
        check_folder(folder)
    check_folder(folder / "tasks")
    (folder / "tasks" / "d").write_text("")
    with pytest.raises(BadInput, match="none of the files that were written"):
        check_file(folder / "tasks" / "d")
    (folder / "tasks" / "c").unlink()
    with pytest.raises(BadInput, match=r"tasks/c is missing, though it was written"):
        check_folder(folder / "tasks")


@pytest.mark.parametrize("name", ["../other", "/etc/hostname", "a/../../other"])
def test_a_manifest_names_files_of_its_own_folder_only(name: str, tmp_path: Path) -> None:
    write_document(tmp_path / MANIFEST, {"files": {name: "0" * 64}})
    with pytest.raises(BadInput, match="leads out of its own folder"):
        check_folder(tmp_path)


def test_documents_carry_their_digest(tmp_path: Path) -> None:
    path, content = tmp_path / "x.json", {"b": [1, None], "a": "\u00e9"}
    write_document(path, content)
    assert read_document(path) == content
    write_document(path, read_json(path) | {"b": 2})
    assert read_document(path) == content | {"b": 2}
    path.write_text(path.read_text().replace(": 2", ": 3"))
    with pytest.raises(BadInput, match="was changed since it was written"):
        read_document(path)
    path.write_text('{"b": 2}')
    with pytest.raises(BadInput, match="does not carry a digest"):
        read_document(path)


def test_what_is_put_in_its_place_is_on_the_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(publish, "_sync", lambda path: done.append(f"sync {path.name}"))
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append("rename"), replace(self, to))[1])
    (tmp_path / "scratch" / "below").mkdir(parents=True)
    (tmp_path / "scratch" / "below" / "file").write_text("x")
    put(tmp_path / "scratch", tmp_path / "place")
    assert done[-2:] == ["rename", f"sync {tmp_path.name}"]
    assert set(done[:-2]) == {"sync scratch", "sync below", "sync file"}
    assert (tmp_path / "place" / "below" / "file").read_text() == "x"


def test_a_disk_that_fails_to_write_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "place").write_text("old")

    def failing(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output"):
        put(tmp_path / "new", tmp_path / "place")
    assert (tmp_path / "place").read_text() == "old"


def test_a_number_is_as_long_as_torch_says() -> None:
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == ITEM_BYTES
