"""A project folder with a pico model as its dense checkpoint and a calibration table, for tests of the prune stage."""

from __future__ import annotations

import random
from pathlib import Path

from transformers import PreTrainedModel

from restorelcc.base.cell import Cell
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import DataFiles, ModelEntry
from restorelcc.base.tables import write_texts
from restorelcc.models.checkpoints import save_checkpoint
from restorelcc.stages.prune import PruneConfig
from restorelcc.stages.prune.stage import run
from tests import pico

CONFIG = PruneConfig(sequence_length=24, token_budget=96)
DATA = DataFiles(calibration="c", instructions="i", heldout="h")
ENTRY = ModelEntry(source="some/model", threads=1, data=DATA)


def words(count: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    return " ".join(f"w{rng.randrange(3, pico.VOCABULARY - 1)}" for _ in range(count))


def project(root: Path, dense: PreTrainedModel) -> Layout:
    layout, cell = Layout(root), Cell("pico")
    save_checkpoint(layout.dense(cell), dense, pico.word_tokenizer())
    write_texts(layout.corpus(cell) / "calibration.parquet", [words(5 + number % 40, number) for number in range(30)])
    return layout


def prune(layout: Layout, pruning: str, config: PruneConfig = CONFIG) -> Path:
    """Run the stage; returns the folder it wrote."""
    cell = Cell("pico", pruning)
    run(cell, config, ENTRY, layout)
    return layout.pruned(cell)
