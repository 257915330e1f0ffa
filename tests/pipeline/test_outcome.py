"""What a stage says as it ends: the numbers of the artifacts, and which of how many it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from restorelcc.base.cell import Cell
from restorelcc.base.documents import write_document, write_json
from restorelcc.base.layout import Layout
from restorelcc.base.tables import write_texts
from restorelcc.pipeline.outcome import duration, last_time, outcome, place, training
from restorelcc.pipeline.params import load_params
from restorelcc.pipeline.stages import STAGES
from tests.dag import ROOT

PRUNED, RESTORED = Cell("tiny", "wanda-0.5"), Cell("tiny", "wanda-0.5", "0.25")


def test_each_stage_of_the_grid_has_a_place() -> None:
    params = load_params(ROOT / "params.yaml", ("grid.head_ratio=[0.10,0.25]", "grid.recovery=[random]"))
    assert place(params, "corpus", Cell("tiny")) == "[1/15] corpus tiny"
    assert place(params, "compensate", RESTORED) == "[9/15] compensate tiny wanda-0.5 0.25"
    last = Cell("tiny", "wanda-0.5", recovery="random")
    assert place(params, "evaluate_recovered", last) == f"[15/15] evaluate_recovered {last}"
    assert place(params, "prune", Cell("tiny", "wanda-0.9")) == "prune tiny wanda-0.9", "not of the grid"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (12.4, "12 s"),
        (100, "1 min 40 s"),
        (3599.6, "60 min 0 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_long_stage_says_how_long_it_took_before(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert last_time(layout, "prune", PRUNED) is None
    write_json(layout.log("prune", PRUNED), {"seconds": 1.0})
    assert last_time(layout, "prune", PRUNED) is None, "not worth a line"
    write_json(layout.log("prune", PRUNED), {"seconds": 84.2})
    assert last_time(layout, "prune", PRUNED) == "took 84 s last time"
    layout.log("prune", PRUNED).write_text("[")
    assert last_time(layout, "prune", PRUNED) is None, "a damaged log stops nothing"


def test_what_pruning_training_and_evaluation_found(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layers = [{"error": 0.2}, {"error": 0.3}]
    layout.pruned(PRUNED).mkdir(parents=True)
    write_document(layout.pruned(PRUNED) / "sparsity.json", {"achieved": 0.49976, "layers": layers})
    assert outcome("prune", layout, PRUNED) == (
        "49.98 % of the targeted weights are zero, mean relative error of a layer 0.250"
    )
    layout.training(RESTORED).parent.mkdir(parents=True)
    found = {"heads": [[0, 1]] * 16, "valid_loss": 0.1634, "chosen": {"candidate": "training", "learning_rate": 0.03}}
    found["candidates"] = [
        {"candidate": "no change", "valid_loss": 3.2167},
        {"candidate": "training", "valid_loss": 0.1634},
    ]
    write_document(layout.training(RESTORED), found)
    assert outcome("compensate", layout, RESTORED) == ("16 heads; validation loss 3.217 -> 0.1634, learning rate 0.03")
    assert training(found | {"chosen": {"candidate": "no change"}}) == (
        "no training lowered the validation loss of 3.217: nothing is changed"
    )
    layout.metrics(RESTORED).parent.mkdir(parents=True)
    metrics = {"mean": 0.9415, "perplexity": {"value": 6.127}, "recovered": {"mean": 0.8633, "ci95": [0.8359, 0.8892]}}
    write_document(layout.metrics(RESTORED), metrics)
    assert outcome("evaluate_restored", layout, RESTORED) == (
        "mean accuracy 94.2 %, perplexity 6.13, 86.3 % [83.6, 88.9] of the lost accuracy recovered"
    )
    write_document(layout.metrics(RESTORED), {"mean": None, "perplexity": {"value": 1234.5}, "recovered": None})
    assert outcome("evaluate_restored", layout, RESTORED) == "perplexity 1,234.50"


def test_what_a_corpus_holds(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.corpus(PRUNED).mkdir(parents=True)
    write_texts(layout.corpus(PRUNED) / "calibration.parquet", ["a", "b"])
    write_texts(layout.corpus(PRUNED) / "heldout.parquet", ["c"])
    assert outcome("corpus", layout, Cell("tiny")) == "2 calibration texts, 1 held-out texts"


def test_every_stage_tells_something() -> None:
    from restorelcc.pipeline.outcome import _OUTCOMES

    assert list(_OUTCOMES) == list(STAGES)
