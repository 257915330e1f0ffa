"""What the stage `dense` writes for a folder of the user's: a reference that leads there, and in a clone to its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from restorelcc.base.cell import Cell
from restorelcc.base.digest import model_digest
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import ModelEntry
from restorelcc.models.checkpoints import local_folder, save_checkpoint
from restorelcc.pipeline.sources import compare_sources
from restorelcc.release.export.facts import file_facts
from restorelcc.stages.dense import DenseConfig
from restorelcc.stages.dense.stage import run
from tests import pico

CELL = Cell("mine")


def _project(root: Path, source: str) -> Layout:
    """One with a checkpoint in it, on which the stage has run with `source`."""
    save_checkpoint(root / "models" / "dense", pico.pico(), pico.word_tokenizer())
    (root / "models" / "dense" / "README.md").write_text("---\nbase_model: some/base\n---\n")
    layout = Layout(root)
    run(CELL, DenseConfig(), ModelEntry(source=source), layout)
    return layout


def _source(layout: Layout) -> str:
    source: str = json.loads((layout.dense(CELL) / "model_ref.json").read_text())["source"]
    return source


def test_a_reference_to_a_folder_of_the_project_leads_to_that_of_the_clone(tmp_path: Path) -> None:
    ann = _project(tmp_path / "ann", "models/dense")
    digest = model_digest(ann.dense(CELL))
    assert _source(ann) == "../../../models/dense"
    shutil.copytree(ann.root, tmp_path / "further" / "bob")
    shutil.rmtree(ann.root)
    bob = Layout(tmp_path / "further" / "bob")
    assert local_folder(bob.dense(CELL)) == bob.root / "models" / "dense"
    assert model_digest(bob.dense(CELL)) == digest
    assert file_facts(bob.dense(CELL)).base_model == "some/base"
    entry = ModelEntry(source="models/dense")
    assert compare_sources("mine", entry, bob) == []
    (bob.root / "models" / "dense" / "chat_template.jinja").write_text("{{ messages }}")
    (changed,) = compare_sources("mine", entry, bob)
    assert f"the tokenizer in {bob.root}/models/dense changed since `dense` ran" in changed.sentence


def test_a_folder_elsewhere_is_named_by_its_whole_path(tmp_path: Path) -> None:
    outside = tmp_path / "other" / "models" / "dense"
    _project(tmp_path / "other", str(outside))
    layout = Layout(tmp_path / "project")
    run(CELL, DenseConfig(), ModelEntry(source="../other/models/dense"), layout)
    assert local_folder(layout.dense(CELL)) == outside
    assert Path(_source(layout)).is_absolute()


def test_a_whole_path_into_the_project_stays_one(tmp_path: Path) -> None:
    """What git does not track is in no clone, and there the reference has to lead to this folder."""
    layout = _project(tmp_path / "ann", str(tmp_path / "ann" / "models" / "dense"))
    shutil.copytree(layout.data, tmp_path / "clone" / "data")
    assert local_folder(Layout(tmp_path / "clone").dense(CELL)) == tmp_path / "ann" / "models" / "dense"


def test_data_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "data").symlink_to(tmp_path / "disk" / "deep")
    layout = _project(tmp_path / "project", "models/dense")
    assert _source(layout) == "../../../models/dense"
    assert local_folder(layout.dense(CELL)) == layout.root / "models" / "dense"
