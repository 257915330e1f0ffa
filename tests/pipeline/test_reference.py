"""The JSON schema and the page of params.yaml: current, complete, and of one mind with the checks of the code."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
import yaml

from benchmarks.params_page import FILES
from restorelcc.base.errors import BadInput
from restorelcc.pipeline.params import Params, checked
from restorelcc.pipeline.reference import field_notes, page, schema
from restorelcc.stages.prune import PruneConfig
from tests.dag import ROOT


def test_the_files_are_current() -> None:
    for file, content in FILES.items():
        assert file.read_text(encoding="utf-8") == content(), "run python -m benchmarks.params_page"


def test_a_note_is_the_comment_beside_or_above_a_field() -> None:
    notes = field_notes(PruneConfig)
    assert notes["samples"] == "calibration sequences"
    assert "seed" not in notes
    assert "| `damping` | `0.01` | added to the Hessian's diagonal, as a share of its mean |" in page()
    described = schema()["$defs"]["PruneConfig"]["properties"]["damping"]
    assert (described["description"], described["maximum"]) == (notes["damping"], 1000)


def shipped() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    return content


def test_the_shipped_file_names_the_schema_and_is_valid_by_it() -> None:
    first = (ROOT / "params.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=docs/params.schema.json"
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(shipped(), schema())
    assert set(schema()["properties"]) == set(Params.model_fields)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("prune", "samples", 0), ("prune", "sample", 4), ("extract", "solver", "fast"), ("corpus", "train", "many")],
)
def test_what_the_schema_refuses_the_code_refuses(section: str, key: str, value: object) -> None:
    content = copy.deepcopy(shipped())
    content[section][key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema())
    with pytest.raises(BadInput, match=key):
        checked(content)
