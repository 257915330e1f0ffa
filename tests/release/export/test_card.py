"""The model card says what was measured, also where a number is missing, and compares nothing else."""

from pathlib import Path

import pytest

from restorelcc.base.documents import read_json, write_document
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.tables import MEASURED, SAMPLES, write_table
from restorelcc.release.export.card import CardFacts, _numbers
from restorelcc.release.export.facts import cell_facts
from tests.fingerprints import swapped
from tests.stages.report.cells import CELLS, FINGERPRINT, write_grid


@pytest.mark.parametrize(
    ("recovered", "said"),
    [
        ({"mean": 0.5, "ci95": [None, None]}, "50.0 % was recovered (95 % interval not bounded, because pruning"),
        ({"mean": 0.5, "ci95": None}, "50.0 % was recovered."),
        ({"mean": None, "ci95": None, "reason": "pruning lost nothing"}, "cannot be given: pruning lost nothing."),
        ({}, "(1.96 standard errors)."),
    ],
)
def test_a_finished_cell_without_a_bounded_interval_has_a_card(recovered: dict, said: str) -> None:
    task = {"metric": "acc", "value": 0.5, "stderr": None, "n": 1, "shots": 0, "averaged": True}
    other = {"metric": "word_perplexity", "value": 12.345, "stderr": 0.5, "n": 9, "shots": 0, "averaged": False}
    content = {"tasks": {"boolq": task, "wikitext": other}, "mean": 0.5, "perplexity": {"corpus": "heldout"}}
    content["perplexity"]["value"] = None
    restored = content | {"recovered": recovered and recovered | {"method": "paired bootstrap"}}
    text = _numbers(CardFacts(dense=content | {"mean": None}, restored=restored))
    assert said in text
    assert "| boolq (acc, n = 1) | 50.0 | 50.0 |" in text
    assert "| wikitext (word_perplexity, n = 9) | 12.35 ± 0.98 | 12.35 ± 0.98 |" in text
    assert "| mean | - | 50.0 |" in text and "| perplexity | - (heldout) |" in text
    assert "Not in the mean, because its metric is not an accuracy: wikitext." in text


def test_a_card_never_shows_numbers_that_were_measured_differently(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    write_grid(layout)
    assert cell_facts(CELLS[3], layout).restored is not None
    how = swapped(FINGERPRINT, "metric")
    write_document(layout.metrics(CELLS[0]), read_json(layout.metrics(CELLS[0])) | {"measured": how.digest})
    write_table(layout.samples(CELLS[0]), [], SAMPLES, {MEASURED: how.as_text()})
    with pytest.raises(BadInput, match=r"a \(dense\) and a wanda-0.5 \(pruned\) cannot .* \(acc_norm against acc\)"):
        cell_facts(CELLS[3], layout)
