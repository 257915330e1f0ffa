"""The settings that a result was made with, from dvc.lock: not those of params.yaml by now, nor of another result."""

from __future__ import annotations

import sys
from contextlib import chdir
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from restorelcc.base.cell import Cell
from restorelcc.base.documents import write_json
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import USED_BY
from restorelcc.pipeline import one_run
from restorelcc.pipeline.made_with import made_with
from restorelcc.pipeline.overrides import put_over
from restorelcc.pipeline.params import load_params
from tests.dag import ROOT

CELL = Cell("tiny", "wanda-0.5", "0.25")
STAGE = """
import pathlib, sys
for name in sys.argv[1:]:
    path = pathlib.Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name + pathlib.Path("made_by").read_text())
"""
PIPELINE = """
stages:
  corpus:
    matrix: {model: [tiny]}
    cmd: PYTHON stage.py data/corpus/tiny/calibration.parquet data/corpus/tiny/more/train.parquet
    deps: [data/inputs/tiny/settings/corpus.json]
    params: [corpus]
    outs: [data/corpus/tiny]
  prune:
    matrix: {model: [tiny], pruning: [wanda-0.5]}
    cmd: PYTHON stage.py data/tiny/wanda-0.5/pruned/model data/tiny/wanda-0.5/pruned/config
    deps: [data/inputs/tiny/settings/prune.json, data/corpus/tiny/calibration.parquet]
    params: [prune]
    outs: [data/tiny/wanda-0.5/pruned]
  compensate:
    matrix: {model: [tiny], pruning: [wanda-0.5], head_ratio: [0.25]}
    cmd: PYTHON stage.py data/tiny/wanda-0.5/heads-0.25/compensation.safetensors
    deps: [data/inputs/tiny/settings/compensate.json, data/tiny/wanda-0.5/pruned, data/corpus/tiny/more/train.parquet]
    params: [compensate]
    outs: [data/tiny/wanda-0.5/heads-0.25/compensation.safetensors]
"""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "made_by").write_text("the first run")
    (tmp_path / "dvc.yaml").write_text(PIPELINE.replace("PYTHON", sys.executable))
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    Repo.init(str(tmp_path), no_scm=True).close()
    return Layout(tmp_path)


def _lay_out(layout: Layout, *settings: str) -> None:
    entry = load_params(layout.root / "params.yaml", settings).models["tiny"]
    for stage in USED_BY:
        write_json(layout.inputs(CELL) / "settings" / f"{stage}.json", entry.settings_for(stage))


def _reproduce(layout: Layout, target: str | None, *settings: str) -> None:
    params = layout.root / "params.yaml"
    with (
        one_run.dvc_reads(params, lambda content: put_over(content, settings)),
        chdir(layout.root),
        Repo(str(layout.root)) as repo,
    ):
        repo.reproduce(targets=target and [target])


def _sections(layout: Layout) -> dict[str, object]:
    section = made_with(CELL, load_params(layout.root / "params.yaml"), layout)
    return {name: section("tiny", name) for name in ("corpus", "prune", "capture", "compensate")}


def test_the_settings_of_a_run_are_those_of_its_result_whatever_params_yaml_has(layout: Layout) -> None:
    run = ("prune.samples=64", "prune.damping=0.5", "corpus.contrast=7")
    _lay_out(layout, *run)
    _reproduce(layout, None, *run)
    params = load_params(layout.root / "params.yaml")
    found = _sections(layout)
    was = load_params(layout.root / "params.yaml", run)
    assert found == {name: was.section("tiny", name) for name in ("corpus", "prune", "compensate")} | {"capture": None}
    assert found["prune"] != params.section("tiny", "prune"), "which has 256 samples in the model's own entry"
    # The entry is laid out again as it is in the file: what it was for the run is known no more.
    _lay_out(layout)
    found = _sections(layout)
    assert found["prune"] is None and found["corpus"] == was.section("tiny", "corpus")
    _reproduce(layout, None)
    assert _sections(layout)["prune"] == params.section("tiny", "prune")


def test_a_stage_that_made_something_else_says_nothing_of_this_result(layout: Layout) -> None:
    _lay_out(layout)
    _reproduce(layout, None)
    known = _sections(layout)
    assert [name for name, section in known.items() if section is None] == ["capture"]
    (layout.root / "made_by").write_text("a later run, which came no further")
    _reproduce(layout, "prune@tiny-wanda-0.5", "prune.damping=0.5")
    assert _sections(layout) == known | {"prune": None}
    _reproduce(layout, None)  # back from the cache
    assert _sections(layout) == known
    written = layout.corpus(CELL) / "calibration.parquet"
    content = written.read_text()
    written.chmod(0o644)
    written.write_text("by hand")
    assert _sections(layout) == known | {"corpus": None}
    written.write_text(content)
    assert _sections(layout) == known
    layout.compensation(CELL).unlink()
    layout.compensation(CELL).write_text("by `restorelcc compensate`, without DVC")
    assert set(_sections(layout).values()) == {None}
