"""restorelcc.json and restorelcc/original.json: every key that is read has its type, or one sentence names it."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from restorelcc.base.errors import BadInput
from restorelcc.models.safetensors_header import read_raw
from restorelcc.release.original import original_config, original_tensors
from restorelcc.release.provenance import RECORD, read_record
from tests import pico

DIGEST = "0" * 64
WEIGHT = {"dtype": "float32", "shape": [2, 2], "sha256": DIGEST, "zeros": 2, "patterns": ["2:4"]}
GOOD_RECORD: dict[str, Any] = {
    "format": 1,
    "made": [RECORD],
    "route": {"cut": False, "name": "as it is"},
    "sparsity": {"patterns": ["2:4"], "share": 0.5},
    "parents": {"pruned": {"path": None, "digest": DIGEST}},
    "tensors": {"w": WEIGHT, "b": {"dtype": "float32", "shape": [], "sha256": DIGEST}},
    "files": {"config.json": DIGEST},
}
NO_LISTS = ("text", 5, 1.5, True, None, {"a": 1})


def _set(path: str, *values: Any) -> list[tuple[str, Any]]:
    return [(path, value) for value in values]


# Path of the key, by dots; and what stands there. MISSING: nothing.
MISSING = object()
RECORDS = [
    *((name, MISSING) for name in GOOD_RECORD),
    *((path, MISSING) for path in ("route.cut", "sparsity.patterns", "parents.pruned.digest", "parents.pruned.path")),
    *((f"tensors.w.{key}", MISSING) for key in WEIGHT),
    *_set("format", 2, "1", None),
    *_set("made", *NO_LISTS, [5], [None]),
    *_set("route", *NO_LISTS[:-1], [], {}),
    *_set("route.cut", "false", 0, None),
    *_set("sparsity.patterns", *NO_LISTS, [2]),
    *_set("parents", *NO_LISTS[:-1], [], {"pruned": None}),
    *_set("parents.pruned.digest", 5, None, "0", DIGEST.replace("0", "G")),
    *_set("parents.pruned.path", 5, [], {}),
    *_set("tensors", *NO_LISTS[:-1], [], {"w": []}),
    *_set("tensors.w.dtype", 5, None),
    *_set("tensors.w.shape", *NO_LISTS, [-1], [1.0], ["2"]),
    *_set("tensors.w.sha256", 5, "", None),
    *_set("tensors.w.zeros", -1, 1.5, "2", None),
    *_set("tensors.w.patterns", *NO_LISTS, ["2of4"], [2], ["2:4\n"]),
    *_set("files", *NO_LISTS[:-1], [], {"config.json": 5}),
]


def _with(good: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(good)
    at: Any = content
    *above, last = path.split(".")
    for key in above:
        at = at[key]
    if value is MISSING:
        del at[last]
    else:
        at[last] = value
    return content


def _refused(path: Path, read: Callable[[], Any], content: Any) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput) as caught:
        read()
    said = str(caught.value)
    assert said.startswith(str(path)) and "\n" not in said and said.endswith("export the checkpoint again"), said
    return said


@pytest.mark.parametrize(("key", "value"), RECORDS)
def test_a_record_that_is_none_names_its_key(key: str, value: Any, tmp_path: Path) -> None:
    said = _refused(tmp_path / RECORD, lambda: read_record(tmp_path), _with(GOOD_RECORD, key, value))
    assert f"({'tensors.w' if key in ('tensors.w.zeros', 'tensors.w.patterns') else key}" in said, said


def test_a_record_may_hold_more_than_is_read(tmp_path: Path) -> None:
    content = GOOD_RECORD | {"model": "tiny", "config": {"seed": 1}}
    (tmp_path / RECORD).write_text(json.dumps(content))
    assert read_record(tmp_path) == content


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What keep_original writes of a checkpoint with one tensor."""
    path = tmp_path_factory.mktemp("original") / "model.safetensors"
    path.write_bytes(save({"w": torch.ones(2)}))
    header = base64.b64encode(read_raw(path)).decode()
    config = json.dumps(pico.pico().config.to_dict())
    return {"texts": {"config.json": config}, "files": {path.name: {"header": header, "sha256": DIGEST}}}


FILE = "model.safetensors"
ORIGINALS = [
    *(("texts", value) for value in (MISSING, *NO_LISTS[:-1], [], {})),
    *(("files", value) for value in (MISSING, *NO_LISTS[:-1], [], {}, {FILE: None}, {FILE: {}})),
    *(("texts", {"config.json": value}) for value in (None, 5, {}, [])),
    *(("files", {FILE: {"header": value, "sha256": DIGEST}}) for value in (None, 5, [], "!!", "", "YWJj")),
    *(("files", {FILE: {"header": "", "sha256": value}}) for value in (None, 5, [])),
    ("files", {FILE: {"header": ""}}),
    ("files", {"model.py": {"header": "", "sha256": DIGEST}}),
    ("texts", {"config.json": "{}", "x.txt": ""}),
]


@pytest.mark.parametrize(("key", "value"), ORIGINALS)
def test_what_is_kept_of_the_pruned_checkpoint_is_checked(
    key: str, value: Any, original: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "restorelcc" / "original.json"
    _refused(path, lambda: original_config(tmp_path), _with(original, key, value))


@pytest.mark.parametrize("content", [[], None, "text", 5])
@pytest.mark.parametrize("name", [RECORD, "restorelcc/original.json"])
def test_a_document_that_is_no_object_is_refused(name: str, content: Any, tmp_path: Path) -> None:
    (tmp_path / "restorelcc").mkdir()
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(BadInput, match="where an object is expected"):
        read_record(tmp_path) if name == RECORD else original_config(tmp_path)


def test_what_is_kept_names_a_tensor_that_is_not_there(original: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "restorelcc").mkdir()
    (tmp_path / "restorelcc" / "original.json").write_text(json.dumps(original))
    assert original_config(tmp_path)["model_type"] == "llama"
    (tmp_path / FILE).write_bytes(save({"other": torch.ones(2)}))
    with pytest.raises(BadInput, match="has no tensor w"):
        list(original_tensors(tmp_path))
