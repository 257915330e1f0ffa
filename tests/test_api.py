"""The method on models in memory: thin over the stages, and importing the package stays cheap."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import restorelcc
from benchmarks.notebook_page import NOTEBOOK, PAGE, code, notebook
from restorelcc.base.errors import BadInput
from tests import pico
from tests.dag import ROOT


def _tuples(count: int = 24) -> list[dict[str, str]]:
    rows = pico.tokens(count, 9, seed=4).clamp(max=60).tolist()
    words = [[f"w{token}" for token in row] for row in rows]
    return [
        {"question": " ".join(row[:5]), "positive": " ".join(row[5:7]), "negative": " ".join(row[7:])} for row in words
    ]


def test_the_chain_on_models_in_memory(tmp_path: Path) -> None:
    tokenizer, dense = pico.word_tokenizer(), pico.pico("llama")
    pruned = copy.deepcopy(dense)
    results = restorelcc.prune(pruned, "magnitude-0.5", tokenizer=tokenizer, texts=["w5 w6 w7 w8 w9"] * 4)
    assert {result.zeros / result.total for result in results} == {0.5}
    before = {name: value.clone() for name, value in pruned.state_dict().items()}
    rows = _tuples()
    of_dense = restorelcc.capture(dense, tokenizer, rows, responses=True)
    of_pruned = restorelcc.capture(pruned, tokenizer, rows, responses=False)
    components = restorelcc.extract(of_dense, of_pruned)
    assert components.directions.shape == (3, 4, 6, 6)
    mean_shift = (of_dense.question_LNX - of_pruned.question_LNX).mean(dim=1).unflatten(-1, (4, 6))
    whole = torch.einsum("lhk,lhkd->lhd", components.loadings, components.directions)
    torch.testing.assert_close(whole, mean_shift, atol=1e-5, rtol=1e-4)
    ranking = restorelcc.probe(of_dense, of_pruned, components, steps=5)
    assert sorted(ranking.heads) == [(layer, head) for layer in range(3) for head in range(4)]
    assert len(ranking.best(0.25)) == 3
    training = {"epochs": 1, "learning_rates": (0.1,)}
    noise = [{"question": row["question"], "response": row["positive"]} for row in rows]
    nothing = restorelcc.compensate(pruned, tokenizer, components, ranking.best(0.25), noise, **training)
    assert not nothing.offset_LHD.any(), "random words teach nothing that holds for the last ones"
    pairs = [row | {"response": "w9 w9"} for row in noise]
    compensation = restorelcc.compensate(
        pruned, tokenizer, components, ranking.best(0.25), pairs, **training, path=tmp_path / "c.safetensors"
    )
    assert all(torch.equal(value, before[name]) for name, value in pruned.state_dict().items())
    with torch.no_grad():
        plain = pruned(input_ids=pico.tokens()).logits
        attached = restorelcc.attach(pruned, tmp_path / "c.safetensors")
        hooked = pruned(input_ids=pico.tokens()).logits
        attached.remove()
        attached.remove()
        assert torch.equal(pruned(input_ids=pico.tokens()).logits, plain)
        with restorelcc.attach(pruned, compensation):
            assert torch.equal(pruned(input_ids=pico.tokens()).logits, hooked)
        assert torch.equal(pruned(input_ids=pico.tokens()).logits, plain)
        bare = copy.deepcopy(pruned)
        restorelcc.attach(bare, compensation)
        gc.collect()
        assert torch.equal(bare(input_ids=pico.tokens()).logits, hooked), "it stays though nobody keeps what it gave"
        folded = restorelcc.fold(pruned, compensation)(input_ids=pico.tokens()).logits
    assert (hooked - plain).abs().max() > 1e-3
    torch.testing.assert_close(folded, hooked, atol=1e-5, rtol=0)


def test_a_model_in_training_mode_gives_the_same_and_stays_in_it() -> None:
    """A model as a training loop leaves it would drop out activations while they are measured."""
    tokenizer, rows = pico.word_tokenizer(), _tuples(6)
    at_rest = pico.pico("gpt2", attn_pdrop=0.5, embd_pdrop=0.5, resid_pdrop=0.5).eval()
    training = copy.deepcopy(at_rest).requires_grad_(True).train()
    training.transformer.h[1].eval()
    for model in (at_rest, training):
        restorelcc.prune(model, "wanda-0.5", tokenizer=tokenizer, texts=["w5 w6 w7 w8 w9"] * 4)
    found = [restorelcc.capture(model, tokenizer, rows, responses=False).question_LNX for model in (at_rest, training)]
    assert torch.equal(*found)
    assert training.training
    assert not training.transformer.h[1].mlp.training
    assert all(part.requires_grad for part in training.parameters())


def test_what_cannot_be_is_refused() -> None:
    tokenizer, model = pico.word_tokenizer(), pico.pico("mistral")
    with pytest.raises(BadInput, match=r"silently drop.*restorelcc export.*restorelcc.attach\(model, file\)"):
        restorelcc.fold(model, torch.ones(3, 4, 6))
    of_pruned = restorelcc.capture(model, tokenizer, _tuples(4), responses=False)
    with pytest.raises(BadInput, match="responses=True"):
        restorelcc.probe(of_pruned, of_pruned, restorelcc.extract(of_pruned, of_pruned))
    with pytest.raises(BadInput, match="row 1 of contrast has no text in the column 'negative'"):
        restorelcc.capture(model, tokenizer, [*_tuples(1), {"question": "w3", "positive": "w4"}], responses=True)
    with pytest.raises(BadInput, match="contrast is empty"):
        restorelcc.capture(model, tokenizer, [], responses=True)
    with pytest.raises(BadInput, match="give more pairs"):
        rows = [{"question": "w3 w4", "response": "w5"}]
        restorelcc.compensate(model, tokenizer, restorelcc.extract(of_pruned, of_pruned), [(0, 0)], rows)


def test_senseless_arguments_are_one_sentence(tmp_path: Path) -> None:
    tokenizer, model, rows = pico.word_tokenizer(), pico.pico("llama"), _tuples(6)
    seen = restorelcc.capture(model, tokenizer, rows, responses=True)
    components = restorelcc.extract(seen, seen)
    ranking = restorelcc.probe(seen, seen, components, score="random")
    for ratio in (25, 1.5, 0, "0.25"):
        with pytest.raises(BadInput, match="give a number above 0 and at most 1"):
            ranking.best(ratio)
    pairs = [{"question": row["question"], "response": row["positive"]} for row in rows]

    def trained(heads: Any, **given: Any) -> None:
        restorelcc.compensate(model, tokenizer, components, heads, pairs, **given)

    some = [(0, 0)]
    for call, said in (
        (lambda: trained([]), "heads is empty"),
        (lambda: trained([(9, 9)]), r"heads has \(9, 9\), and the model has layers 0 to 2 and heads 0 to 3"),
        (lambda: trained([(0, -1)]), r"heads has \(0, -1\)"),
        (lambda: trained(torch.tensor([[-1, 0]])), r"heads has \(-1, 0\)"),
        (lambda: trained(some, valid_share=-1), "valid_share is -1"),
        (lambda: trained(some, path=tmp_path / "no" / "c.safetensors"), "cannot be written: make its folder"),
        (lambda: trained(some, path=tmp_path), "is a folder: give a file in it"),
        (lambda: trained(some, learning_rates=0.1), "^learning_rates "),
        (lambda: restorelcc.capture(model, tokenizer, rows, responses=False, token_budget=0), "token_budget is 0"),
        (lambda: restorelcc.prune(model, "wanda-0.5", tokenizer=tokenizer, texts="w5 w6"), "texts must be a list"),
        (lambda: restorelcc.prune(model, "wanda-0.5", tokenizer=tokenizer, texts=["w5"], sample=3), "mean 'samples'"),
    ):
        with pytest.raises(BadInput, match=said):
            call()


def test_a_ranking_of_too_little_is_refused() -> None:
    tokenizer, model = pico.word_tokenizer(), pico.pico("llama")
    rows = _tuples()
    one = restorelcc.capture(model, tokenizer, rows[:1], responses=True)
    with pytest.raises(BadInput, match="probe needs at least 2 contrast tuples"):
        restorelcc.probe(one, one, restorelcc.extract(one, one))
    components = restorelcc.extract(one, one)
    one.question_LNX[0, 0, 0] = float("nan")
    with pytest.raises(BadInput, match="the activations hold NaN or infinity"):
        restorelcc.extract(one, one)
    with pytest.raises(BadInput, match="the scores are no finite numbers"):
        restorelcc.probe(one, one, components, score="mse")


def test_settings_are_followed_or_refused() -> None:
    tokenizer, dense = pico.word_tokenizer(), pico.pico("llama")
    pruned = copy.deepcopy(dense).requires_grad_(True)
    restorelcc.prune(pruned, "magnitude-0.5", tokenizer=tokenizer, texts=["w5 w6 w7 w8 w9"] * 4)
    rows = _tuples()
    activations = [restorelcc.capture(each, tokenizer, rows, responses=True) for each in (dense, pruned)]
    components = restorelcc.extract(*activations)
    by_mse = restorelcc.probe(*activations, components, score="mse")
    lost_LHD = activations[0].heads(activations[0].question_LNX - activations[1].question_LNX)
    expected_LH = lost_LHD.square().mean(dim=(1, 3))
    torch.testing.assert_close(by_mse.score_LH.float(), expected_LH)
    assert by_mse.heads[0] == divmod(int(expected_LH.argmax()), pico.HEADS)
    training = {"epochs": 1, "learning_rates": (0.1,)}
    pairs = [{"question": row["question"], "response": "w9 w9"} for row in rows]

    def compensate(**settings: Any) -> restorelcc.compensation.compensation.Compensation:
        heads = by_mse.best(0.25)
        return restorelcc.compensate(pruned, tokenizer, components, heads, pairs, **training, **settings)

    plain = compensate()
    assert {site.linear for site in compensate(sites=("o", "down")).sites} == {"mlp.down_proj"}
    for changes in ({"start": "meanshift"}, {"parts": ("bias",)}, {"distill": {"weight": 1.0}, "dense": dense}):
        assert not torch.equal(compensate(**changes).offset_LHD, plain.offset_LHD), changes
    with pytest.raises(BadInput, match=r"compensate\(..., dense=model\)"):
        compensate(start="ridge")
    for name, value in (("examples", 2), ("task", "t"), ("auto_ratios", (0.5,))):
        with pytest.raises(BadInput, match=f"the setting '{name}' has no meaning here"):
            compensate(**{name: value})
    for settings in ({"score": "causal"}, {"margin_samples": 3}, {"scores": ("mse",)}):
        with pytest.raises(BadInput, match=r"no meaning here|cannot be computed here"):
            restorelcc.probe(*activations, components, **settings)
    assert all(part.requires_grad and part.grad is None for part in pruned.parameters())


def test_sequences_end_where_the_models_context_does() -> None:
    """A model with learned positions has none beyond it."""
    tokenizer, model = pico.word_tokenizer(), pico.pico("opt", max_position_embeddings=8)
    long = " ".join(f"w{3 + n}" for n in range(40))
    restorelcc.prune(model, "wanda-0.5", tokenizer=tokenizer, texts=[long] * 2)
    rows = [{"question": long, "positive": "w5", "negative": "w6"} for _ in range(4)]
    found = restorelcc.capture(model, tokenizer, rows, responses=True)
    pairs = [{"question": long, "response": "w9 w9"}] * 4
    restorelcc.compensate(
        model, tokenizer, restorelcc.extract(found, found), [(0, 0)], pairs, epochs=1, learning_rates=(0.1,)
    )


def test_functions_are_plain_and_nothing_is_imported_before_it_is_used() -> None:
    code = (
        "import inspect, sys, restorelcc, restorelcc.cli.app\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
        "import restorelcc.stages.prune\n"
        "assert 'torch' not in sys.modules\n"
        "assert list(inspect.signature(restorelcc.prune).parameters)[:2] == ['model', 'pruning'], 'signature'\n"
        "assert {'prune', 'fold', 'attach'} <= set(dir(restorelcc))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        _ = restorelcc.prunes


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell of docs/notebook.ipynb, one after another; it is the page docs/notebook.md."""
    written = NOTEBOOK.read_text(encoding="utf-8")
    assert written == notebook(PAGE.read_text(encoding="utf-8")), "run python -m benchmarks.notebook_page"
    blocks = code(written)
    assert len(blocks) >= 5
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESTORELCC_PROGRESS", "0")
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/notebook.ipynb, cell {number + 1}", "exec"), names)
    assert (tmp_path / "compensation.safetensors").is_file()
