"""A project folder with pico models as dense and pruned checkpoints and a contrast table, for tests of the stages."""

from __future__ import annotations

import random
from pathlib import Path

from restorelcc.base.cell import Cell
from restorelcc.base.digest import model_digest
from restorelcc.base.documents import write_document
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import DataFiles, ModelEntry
from restorelcc.base.tables import CONTRAST, write_table
from restorelcc.models.checkpoints import save_checkpoint
from restorelcc.stages.capture import CaptureConfig
from restorelcc.stages.capture.stage import run_dense, run_pruned
from tests import pico
from tests.stages.prune.project import words

ENTRY = ModelEntry(
    source="some/model", threads=1, device="cpu", data=DataFiles(calibration="c", instructions="i", heldout="h")
)
CELL = Cell("pico", "wanda-0.5")
CONFIG = CaptureConfig(token_budget=40)


def tuples(count: int, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    return [
        {"sample_id": number * 3, "task": "t", "question": words(rng.randint(1, 14), rng.randrange(10**6))}
        | {side: words(rng.randint(1, 6), rng.randrange(10**6)) for side in ("positive", "negative")}
        for number in range(count)
    ]


def write_tuples(layout: Layout, rows: list[dict]) -> None:
    write_table(layout.corpus(CELL) / "contrast.parquet", rows, CONTRAST)


def project(root: Path, count: int = 40) -> Layout:
    layout = Layout(root)
    save_checkpoint(layout.dense(CELL), pico.pico(), pico.word_tokenizer())
    save_checkpoint(layout.pruned(CELL), pico.pico(seed=1), pico.word_tokenizer())
    write_document(layout.pruned(CELL) / "sparsity.json", {"parents": {"dense": model_digest(layout.dense(CELL))}})
    write_tuples(layout, tuples(count))
    return layout


def capture(layout: Layout, config: CaptureConfig = CONFIG) -> None:
    run_dense(Cell("pico"), config, ENTRY, layout)
    run_pruned(CELL, config, ENTRY, layout)
