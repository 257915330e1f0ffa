"""Whatever params.yaml holds, the loader takes it or says one sentence; what it takes DVC reads alike."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.serialize import parse_yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from restorelcc.base.errors import BadInput
from restorelcc.pipeline.params import Params, checked, load_params
from restorelcc.pipeline.params_file import read_params
from tests.dag import ROOT

LINES = (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines()
CONTENT = {name: {} for name in Params.model_fields} | {"models": {"tiny": {"source": "microworld"}}}
CONTENT["grid"] = {"model": ["tiny"], "pruning": ["wanda-0.5"], "head_ratio": [0.1]}
KEYS = [
    *((name,) for name in Params.model_fields),
    *(
        (name, key)
        for name, field in Params.model_fields.items()
        for key in getattr(field.annotation, "model_fields", {})
    ),
    *(("models", "tiny", key) for key in ("source", "device", "data", "tasks", "settings", "max_memory", "threads")),
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
# What YAML's versions read in different ways, and what looks like something else.
_TOKENS = (
    "010 0o10 08 0x1f 1_000 1:30 yes No on off y ~ null True 1e3 1e-3 .5 5. .inf .nan 2026-11-28 = << - ? [ { } ] & * "
    "! | > ' \" % @ `"
)
TOKENS = st.sampled_from(_TOKENS.split()) | st.text(max_size=6)
OFTEN = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


def _loaded(file: Path, content: bytes) -> Params | None:
    file.write_bytes(content)
    try:
        found = load_params(file)
    except BadInput as error:
        assert "\n" not in str(error) and len(str(error)) < 1500
        return None
    assert parse_yaml(content.decode(), str(file)) == read_params(file)
    return found


@OFTEN
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(content=b"\xef\xbb\xbfgrid: {}")
def test_any_bytes(file: Path, content: bytes) -> None:
    assert _loaded(file, content) is None


@OFTEN
@given(number=st.integers(0, len(LINES) - 1), token=TOKENS, kind=st.sampled_from(["value", "line", "key", "before"]))
def test_the_shipped_file_with_a_line_changed(file: Path, number: int, token: str, kind: str) -> None:
    lines = list(LINES)
    key, colon, value = lines[number].partition(":")
    lines[number] = {
        "value": f"{key}{colon} {token}",
        "line": token,
        "key": f"{token}{colon}{value}",
        "before": f"{token}\n{lines[number]}",
    }[kind]
    _loaded(file, "\n".join(lines).encode("utf-8", "surrogatepass"))


@OFTEN
@given(key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_of_any_key(key: tuple[str, ...], value: Any) -> None:
    content = copy.deepcopy(CONTENT)
    at: Any = content
    for part in key[:-1]:
        at = at[part]
    at[key[-1]] = value
    try:
        checked(content)
    except BadInput as error:
        assert "\n" not in str(error)


@OFTEN
@given(
    override=st.text(max_size=30)
    | st.tuples(st.sampled_from(KEYS), TOKENS).map(lambda pair: f"{'.'.join(pair[0])}={pair[1]}")
)
def test_any_override(override: str) -> None:
    try:
        checked(copy.deepcopy(CONTENT), (override,))
    except BadInput as error:
        assert "\n" not in str(error)


def test_the_example_is_good() -> None:
    checked(copy.deepcopy(CONTENT))
    assert yaml.safe_load("\n".join(LINES))
