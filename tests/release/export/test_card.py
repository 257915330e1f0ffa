"""The model card says what was measured, also where a number is missing, and compares nothing else."""

import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig

from restorelcc.base.digest import file_digest, model_digest
from restorelcc.base.documents import read_json, write_document
from restorelcc.base.errors import BadInput, one_line
from restorelcc.base.escaping import for_markdown
from restorelcc.base.layout import Layout
from restorelcc.base.tables import MEASURED, SAMPLES, write_table
from restorelcc.compensation.compensation import Compensation
from restorelcc.compensation.file import write_compensation
from restorelcc.models.checkpoints import save_checkpoint
from restorelcc.release.export.card import CardFacts, _method, _numbers, model_card
from restorelcc.release.export.cell import cell_options
from restorelcc.release.export.facts import cell_facts
from restorelcc.stages.compensate import CompensateConfig
from restorelcc.training.config import SITES
from tests import pico
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


def test_names_from_elsewhere_are_no_markup() -> None:
    evil = "mit\n---\n# <script>alert(1)</script> ![x](http://tracker.example) |"
    facts = CardFacts(title=evil, base_model=evil, licence=evil)
    sparsity = {"share": 0.5, "targeted": 4, "patterns": []}
    route = {"folded": [], "name": evil, "added_parameters": 0, "cut": False}
    route |= {"model_type": "llama", "relabelled_from": evil}
    card = model_card({"sparsity": sparsity, "route": route}, LlamaConfig(), facts)
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    found = yaml.safe_load(front)
    assert found["license"] == found["base_model"] == one_line(evil) and found["library_name"] == "transformers"
    assert "<script" not in body and not re.search(r"(?<!\\)!\[", body) and "http://tracker" not in body
    assert [line for line in body.splitlines() if line.startswith("# ")] == [f"# {for_markdown(evil)}"]


DENSE, PRUNED, _, RESTORED = CELLS


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A grid's metrics, with the files that they were measured on."""
    layout = Layout(tmp_path)
    write_grid(layout)
    for seed, folder in enumerate((layout.dense(DENSE), layout.pruned(PRUNED))):
        save_checkpoint(folder, pico.pico(seed=seed), pico.word_tokenizer())
    write_document(layout.pruned(PRUNED) / "sparsity.json", {"parents": {"dense": model_digest(layout.dense(DENSE))}})
    _write_compensation(layout, 1.0)
    models = {DENSE: layout.dense(DENSE), PRUNED: layout.pruned(PRUNED), RESTORED: layout.pruned(PRUNED)}
    for cell, folder in models.items():
        digests = {"model": model_digest(folder)}
        if cell == RESTORED:
            digests["compensation"] = file_digest(layout.compensation(cell))
        write_document(layout.details(cell), read_json(layout.details(cell)) | {"digests": digests})
    return layout


def _write_compensation(layout: Layout, value: float) -> None:
    layout.compensation(RESTORED).parent.mkdir(exist_ok=True)
    offset = torch.full((pico.LAYERS, pico.HEADS, pico.HEAD_DIM), value)
    write_compensation(layout.compensation(RESTORED), Compensation(offset), {})


def _shown(facts: CardFacts) -> list[str]:
    return [name for name in ("dense", "pruned", "restored") if getattr(facts, name) is not None]


def test_numbers_of_another_compensation_or_checkpoint_are_left_out_and_it_is_said(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _shown(facts := cell_facts(RESTORED, layout)) == ["dense", "pruned", "restored"]
    assert capsys.readouterr().err == ""
    assert facts.restored is not None and "recovered" in facts.restored
    shutil.rmtree(layout.dense(DENSE))
    assert "dense" in _shown(cell_facts(RESTORED, layout)), "the pruned model says which dense model it was made from"
    save_checkpoint(layout.dense(DENSE), pico.pico(seed=7), pico.word_tokenizer())
    assert _shown(facts := cell_facts(RESTORED, layout)) == ["pruned", "restored"]
    assert facts.restored is not None and "recovered" not in facts.restored, "a share of what is not known"
    assert "recovered" not in _numbers(facts)
    said = "export: the model card leaves out the numbers of the dense model, which are not known to be of the exported"
    assert capsys.readouterr().err.startswith(f"{said} files: evaluate again (`dvc repro evaluate_dense@a`, or `rest")
    _write_compensation(layout, 2.0)
    assert _shown(facts := cell_facts(RESTORED, layout)) == []
    assert "of the dense and restored model, which" in capsys.readouterr().err
    assert "None were measured for this checkpoint." in _numbers(facts)
    _write_compensation(layout, 1.0)
    assert "restored" in _shown(cell_facts(RESTORED, layout))
    save_checkpoint(layout.pruned(PRUNED), pico.pico(seed=8), pico.word_tokenizer())
    assert _shown(cell_facts(RESTORED, layout)) == []


@pytest.mark.parametrize("how", ["no details", "no digests"])
def test_numbers_that_do_not_say_what_they_are_of_are_left_out(layout: Layout, how: str) -> None:
    path = layout.details(RESTORED)
    if how == "no details":
        path.unlink()
    else:
        write_document(path, {key: value for key, value in read_json(path).items() if key != "digests"})
    assert _shown(cell_facts(RESTORED, layout)) == []


@pytest.mark.parametrize(
    ("sites", "told", "not_told"),
    [
        (("o",), "on the frozen pruned model and folded into biases. No pruned weight was touched", "Beside"),
        (("o", "v", "down"), "Beside these offsets it has a trained bias on every v, down. No pruned weight", "method"),
        (("down",), "by the method `heads`: a trained bias on every down. No pruned weight", "attention heads"),
        (SITES, "it has a trained bias on every other linear (the method `every-bias`). No pruned", "the same, and"),
    ],
    ids=str,
)
def test_the_card_tells_of_every_bias_that_was_trained(
    sites: tuple[str, ...], told: str, not_told: str, tmp_path: Path
) -> None:
    config = CompensateConfig.model_validate({"sites": sites})
    names = cell_options(RESTORED, lambda _alias, _name: config, Layout(tmp_path)).names
    text = _method(names | {"route": {"folded": ["a.bias"]}})
    assert told in text and not_told not in text
    assert ("arxiv.org/abs/2510.21834" in text) == ("o" in sites)


def test_a_card_never_shows_numbers_that_were_measured_differently(layout: Layout) -> None:
    assert cell_facts(CELLS[3], layout).restored is not None
    how = swapped(FINGERPRINT, "metric")
    write_document(layout.metrics(CELLS[0]), read_json(layout.metrics(CELLS[0])) | {"measured": how.digest})
    write_table(layout.samples(CELLS[0]), [], SAMPLES, {MEASURED: how.as_text()})
    with pytest.raises(BadInput, match=r"a \(dense\) and a wanda-0.5 \(pruned\) cannot .* \(acc_norm against acc\)"):
        cell_facts(CELLS[3], layout)
