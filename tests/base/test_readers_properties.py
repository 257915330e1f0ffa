"""Whatever bytes a file holds, a reader gives a value or says one sentence. Files are right ones that were changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from restorelcc.base.documents import SEAL, _digest, read_document, read_json, read_metrics, read_yaml
from restorelcc.base.errors import BadInput
from restorelcc.base.manifest import MANIFEST, check_folder
from restorelcc.base.tables import CONTRAST, ITEMS, SAMPLES, read_metadata, read_table, sealed_metadata, write_table
from restorelcc.models.safetensors_header import METADATA, decoded, encoded, read_header, tensors_of
from restorelcc.models.tensors import read_all_tensors
from restorelcc.stages.corpus.local import read_file
from tests.base.test_corruption import METRICS

FEW = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
KEYS = st.sampled_from(["", "a", "sha256", "files", "tasks", "schema", METADATA, "../x", "\x00", "\ud800"])
NUMBERS = st.sampled_from([0, -1, 1, 3, 2**31, 2**63, 2**64, 10**40, -(10**40), 0.5, -0.0, 1e308])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=6) | KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def taken(read: Callable[[], Any]) -> bool:
    """Whether the reader gives a value; it may say one sentence instead, and raise nothing else."""
    try:
        read()
    except BadInput as error:
        assert str(error).strip() and "\n" not in str(error) and len(str(error)) < 1500, str(error)
        return False
    return True


@st.composite
def changed_bytes(draw: st.DrawFn, good: bytes) -> bytes:
    """A right file after one to four changes: bits, bytes put in or taken out, a part copied elsewhere, an end."""
    content = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.sampled_from([1, 2, 8, 40]))
        kind = draw(st.sampled_from(["flip", "put", "take", "over", "copy", "cut", "number"]))
        if kind == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "put":
            content[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "take":
            del content[at : at + length]
        elif kind == "over":
            content[at : at + length] = draw(st.sampled_from([b"\0", b"\xff", b'"', b"[", b"9"])) * length
        elif kind == "copy":
            start = draw(st.integers(0, max(len(content) - 1, 0)))
            content[at : at + length] = content[start : start + length]
        elif kind == "cut":
            del content[at:]
        else:
            content[at : at + 8] = draw(st.sampled_from([2**64 - 1, 2**63, 2**31, 2**16])).to_bytes(8, "little")
    return bytes(content)


@st.composite
def changed_value(draw: st.DrawFn, good: Any) -> Any:
    """A right document with another value, or nothing, at some place in it."""
    if isinstance(good, dict) and good and draw(st.integers(0, 4)):
        name = draw(st.sampled_from(sorted(good)))
        if not draw(st.integers(0, 5)):
            return {key: value for key, value in good.items() if key != name}
        return good | {name: draw(changed_value(good[name]))}
    if isinstance(good, list) and good and draw(st.booleans()):
        place = draw(st.integers(0, len(good) - 1))
        return [*good[:place], draw(changed_value(good[place])), *good[place + 1 :]]
    return draw(VALUES)


def seal(path: Path, content: Any) -> None:
    """What whoever makes a document can do as well: halves of characters, and the right digest."""
    if isinstance(content, dict):
        plain = {key: value for key, value in content.items() if key != SEAL}
        content = plain | {SEAL: _digest(plain)}
    path.write_text(json.dumps(content))


ANY = st.binary(max_size=60)
JSON = json.dumps(METRICS, indent=1).encode()


@FEW
@given(content=ANY | changed_bytes(JSON) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    for read in (read_json, read_document, read_metrics, read_yaml):
        taken(lambda read=read: read(path))


@FEW
@given(content=changed_value(METRICS))
def test_metrics_that_carry_their_digest(tmp_path: Path, content: Any) -> None:
    seal(tmp_path / "x.json", content)
    taken(lambda: read_metrics(tmp_path / "x.json"))


@FEW
@given(content=changed_value({"files": {"a": "0" * 64, "tasks/b": "1" * 64}}))
def test_a_manifest(tmp_path: Path, content: Any) -> None:
    seal(tmp_path / MANIFEST, content)
    taken(lambda: check_folder(tmp_path))


ROWS = [
    {"task": "t", "item_id": number, "digest": "d", "gold": 1, "prediction": None, "correct": True, "score": 0.5}
    | {"weight": 1.0, "log_likelihoods": [-1.0, None, -0.25 * number]}
    for number in range(3)
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of one right file of each kind."""
    folder = tmp_path_factory.mktemp("good")
    write_table(folder / "samples", ROWS, SAMPLES, {"a": "b"})
    items = [{"item_id": 1, "question": "ä", "choices": ["x", "y"], "gold": 0}]
    write_table(folder / "items", items, ITEMS, named=True)
    tensors = {"w": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bfloat16), "e": torch.ones(0, 4)}
    (folder / "tensors").write_bytes(save(tensors, {"model": "m"}))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@FEW
@given(data=st.data())
def test_parquet(good: dict[str, bytes], tmp_path: Path, data: st.DataObject) -> None:
    name, schema = data.draw(st.sampled_from([("samples", SAMPLES), ("items", ITEMS)]))
    content = data.draw(ANY | changed_bytes(good[name]))
    for path in (tmp_path / f"{name}.parquet", tmp_path / "rows.parquet"):
        path.write_bytes(content)
    if taken(lambda: read_table(tmp_path / f"{name}.parquet", schema)):
        (tmp_path / "right.parquet").write_bytes(good[name])
        right = pq.read_table(tmp_path / "right.parquet").select(schema.names).to_pylist()
        assert read_table(tmp_path / f"{name}.parquet", schema) == right, "other values were taken in silence"
    taken(lambda: read_metadata(tmp_path / f"{name}.parquet"))
    taken(lambda: list(read_file(tmp_path / "rows.parquet", "rows.parquet").numbered))


COLUMNS = st.sampled_from(
    [
        pa.array([1, None, 3]),
        pa.array(["a", None, "\u2028"]),
        pa.array([[1.0], None, []]),
        pa.array([{"x": 1}, None, {"x": 2}]),
        pa.array([b"\xff\xfe", None, b""]).cast(pa.binary()),
        pa.array(["a", "b", "a"]).dictionary_encode(),
        pa.array([None, None, None]),
        pa.array([2**62, -(2**62), 0], pa.timestamp("ns")),
        pa.array([2**52, -(2**52), 0], pa.timestamp("s")),
        pa.array([2**62, 0, 1], pa.duration("s")),
        pa.array([1, 2, 3], pa.date64()),
        pa.array([True, False, None]),
        pa.array([1.5, None, float("nan")], pa.float16()),
    ]
)


@FEW
@given(names=st.lists(st.sampled_from([*CONTRAST.names, *ITEMS.names, "text"]), max_size=6), data=st.data())
def test_parquet_of_other_columns(tmp_path: Path, names: list[str], data: st.DataObject) -> None:
    """Of names that are expected, twice perhaps, and of other types; sealed or not."""
    table = pa.Table.from_arrays([data.draw(COLUMNS) for _ in names], names=names)
    metadata = data.draw(st.sampled_from([{}, {"sha256": "0"}, sealed_metadata(table.schema, {}, {})]))
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "x.parquet")
    for schema in (CONTRAST, ITEMS):
        taken(lambda schema=schema: read_table(tmp_path / "x.parquet", schema))
    taken(lambda: list(read_file(tmp_path / "x.parquet", "x.parquet").numbered))


@FEW
@given(data=st.data())
def test_safetensors(good: dict[str, bytes], tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data.draw(ANY | changed_bytes(good["tensors"])))
    taken(lambda: read_header(path))
    taken(lambda: read_all_tensors(path))


@FEW
@given(data=st.data())
def test_safetensors_of_other_headers(good: dict[str, bytes], tmp_path: Path, data: st.DataObject) -> None:
    """A header that is JSON, with other values in it; what it takes safetensors' own reader takes too."""
    path, content = tmp_path / "x.safetensors", good["tensors"]
    length = int.from_bytes(content[:8], "little")
    right = decoded(content[: 8 + length])
    header = data.draw(changed_value(right))
    raw = json.dumps(header).encode()
    start = encoded(header) if isinstance(header, dict) and not data.draw(st.booleans()) else _framed(raw)
    path.write_bytes(start + content[8 + length :])
    taken(lambda: read_all_tensors(path))
    if taken(lambda: read_header(path)):
        with safe_open(path, "pt") as file:
            assert set(file.keys()) == set(tensors_of(read_header(path)[0]))


def _framed(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


KINDS = {
    "x.jsonl": '{"question": "ä", "response": "b"}\n{"question": "c", "response": 5}\n'.encode(),
    "x.json": b'[{"text": "a. b"}, {"text": null}]',
    "x.csv": b'question,response\n"a, b",c\r\nd,"e ""f"""\n',
    "x.tsv": b"text\tn\na\t1\n",
    "x.txt": "One line.\n\nAnother \u2028 one.\n".encode(),
    "y.csv": "text;n\nä;1\n".encode("utf-16"),
    "y.jsonl": b'\xef\xbb\xbf{"text": "a"}\n',
}


@FEW
@given(name=st.sampled_from(sorted(KINDS)), data=st.data())
def test_data_files(tmp_path: Path, name: str, data: st.DataObject) -> None:
    path = tmp_path / name
    path.write_bytes(data.draw(ANY | changed_bytes(KINDS[name])))
    taken(lambda: list(read_file(path, name).numbered))
