"""Answer margins and what edits of single heads do to them, against the plainest computation; the probe stage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from restorelcc.activations.store import NEGATIVE, POSITIVE, QUESTION, read_layer
from restorelcc.base.cell import Cell
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.tables import CONTRAST, HEADS, read_metadata, read_table
from restorelcc.compensation.hooks import offset_heads
from restorelcc.models.architectures import head_layout
from restorelcc.models.checkpoints import load_model, save_checkpoint
from restorelcc.models.heads import main_component
from restorelcc.models.tensors import read_tensors
from restorelcc.models.text import EncodedContrast, encode_contrasts
from restorelcc.stages.extract import ExtractConfig
from restorelcc.stages.extract.stage import run as extract
from restorelcc.stages.probe import ProbeConfig
from restorelcc.stages.probe.attribution import causal_scores, gradient_scores, margin_batches
from restorelcc.stages.probe.contrastive import heldout_mask, kl_scores, mse_scores, probe_heads
from restorelcc.stages.probe.margins import evenly_spread
from restorelcc.stages.probe.relational import relational_scores
from restorelcc.stages.probe.stage import run
from tests import pico
from tests.stages.capture.project import CELL, ENTRY, capture, project, tuples, write_tuples


def _margin(model: torch.nn.Module, pair: EncodedContrast) -> float:
    """One plain forward per response."""
    total = []
    for side in (pair.positive, pair.negative):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([side.ids])).logits[0].log_softmax(-1)
        total.append(sum(float(logits[t - 1, side.ids[t]]) for t in range(side.question_tokens, len(side.ids))))
    return total[0] - total[1]


def test_small_gradients_of_a_float16_model_are_not_zero() -> None:
    """Below 6e-8 float16 has no numbers."""
    found = []
    for dtype in (torch.float32, torch.float16):
        model = pico.pico()
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(1e-4)
        model.to(dtype)
        layout = head_layout(model)
        batches = margin_batches(model, encode_contrasts(pico.word_tokenizer(), tuples(7), 99), token_budget=60, pad=0)
        edit_LNHD = torch.ones(layout.layers, 1, layout.heads, layout.head_dim)
        found.append(gradient_scores(model, batches, edit_LNHD))
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0.02 * float(found[0].abs().max()))
    assert bool((found[1] != 0).all())


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
@pytest.mark.parametrize("joint", [True, False])
def test_scores_equal_forward_passes_one_by_one(family: str, joint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pico.pico(family).double()
    monkeypatch.setattr("restorelcc.stages.probe.attribution.can_pack", lambda _model: joint)
    layout = head_layout(model)
    pairs = encode_contrasts(pico.word_tokenizer(), tuples(7), 99)
    batches = margin_batches(model, pairs, token_budget=60, pad=0)
    plain = {n: m for batch in batches for n, m in zip(batch.samples, batch.margin_B(model).tolist(), strict=True)}
    assert plain == pytest.approx({n: _margin(model, pair) for n, pair in enumerate(pairs)}, abs=1e-4)
    edit_LHD = 0.1 * torch.randn(
        layout.layers, layout.heads, layout.head_dim, generator=torch.Generator().manual_seed(0)
    )
    causal_LH = causal_scores(model, batches, edit_LHD[:, None])
    only = torch.zeros_like(edit_LHD)
    only[2, 1] = edit_LHD[2, 1]
    with offset_heads(model, only):
        edited = [_margin(model, pair) for pair in pairs]
    expected = sum(edited) / 7 - sum(plain.values()) / 7
    assert float(causal_LH[2, 1]) == pytest.approx(expected, abs=1e-4)
    # Where the edit is small, the gradient is the same number.
    small_LHD = 1e-3 * edit_LHD
    first_LH = gradient_scores(model, batches, edit_LHD[:, None])
    exact_LH = causal_scores(model, batches, small_LHD[:, None]) * 1e3
    torch.testing.assert_close(first_LH, exact_LH, atol=5e-3 * float(first_LH.abs().max()), rtol=1e-2)
    per_tuple = edit_LHD[:, None].expand(-1, 7, -1, -1)
    torch.testing.assert_close(gradient_scores(model, batches, per_tuple), first_LH)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_samples_are_spread_evenly() -> None:
    assert evenly_spread(10, 4) == [0, 2, 5, 7]
    assert evenly_spread(3, 9) == [0, 1, 2]


ALL = ("paper", "relational", "causal", "gradient", "random", "mse", "kl", "energy")


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = project(tmp_path_factory.mktemp("captured"), count=20)
    capture(layout)
    extract(CELL, ExtractConfig(), ENTRY, layout)
    return layout.root


@pytest.fixture
def captured(made_once: Path, tmp_path: Path) -> Layout:
    return Layout(shutil.copytree(made_once, tmp_path, dirs_exist_ok=True))


@pytest.mark.parametrize("score", ALL)
def test_every_score_is_a_column_and_can_rank(captured: Layout, score: str) -> None:
    scores = ALL if score == "causal" else tuple(name for name in ALL if name != "causal")
    run(CELL, ProbeConfig(score=score, scores=scores, margin_samples=8), ENTRY, captured)  # type: ignore[arg-type]
    rows = read_table(captured.heads(CELL), HEADS)
    assert [row["rank"] for row in rows] == list(range(pico.LAYERS * pico.HEADS))
    assert {(row["layer"], row["head"]) for row in rows} == {
        (layer, head) for layer in range(pico.LAYERS) for head in range(pico.HEADS)
    }
    assert [row["score"] for row in rows] == [row[score] for row in rows]
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    for name in ALL:
        assert all((row[name] is None) == (name not in scores) for row in rows), name
    assert read_metadata(captured.heads(CELL))["score"] == score
    if score == "energy":
        parts, _ = read_tensors(captured.components(CELL), ("directions", "loadings"))
        c_LHD = main_component(parts["directions"], parts["loadings"], 1)
        best = rows[0]
        assert best["energy"] == pytest.approx(float(c_LHD[best["layer"], best["head"]].square().sum()), rel=1e-5)


def test_the_columns_are_the_scores_of_the_tensors_that_eq_7_names(captured: Layout) -> None:
    """z_c^q = z_pruned + c_K, and what edits are made with is the mean loss; every tensor is put together here."""
    config = ProbeConfig(scores=("mse", "kl", "relational", "causal", "gradient"), components=2, margin_samples=4)
    run(CELL, config, ENTRY, captured)
    row_LH = {(row["layer"], row["head"]): row for row in read_table(captured.heads(CELL), HEADS)}
    model = load_model(captured.pruned(CELL), torch.float32, torch.device("cpu"))
    heads = head_layout(model)
    parts, _ = read_tensors(captured.components(CELL), ("directions", "loadings"))
    heldout = heldout_mask(20, config.heldout_share, config.seed)
    lost_LHD = torch.zeros(heads.layers, heads.heads, heads.head_dim)
    for layer in range(heads.layers):
        dense_NHD, positive_NHD, negative_NHD = (
            read_layer(captured.dense_activations(CELL), layer, role, heads) for role in (QUESTION, POSITIVE, NEGATIVE)
        )
        pruned_NHD = read_layer(captured.pruned_activations(CELL), layer, QUESTION, heads)
        lost_LHD[layer] = (dense_NHD - pruned_NHD).mean(dim=0)
        directions_HDD, loadings_HD = parts["directions"][layer], parts["loadings"][layer]
        c_HD = loadings_HD[:, :1] * directions_HDD[:, 0] + loadings_HD[:, 1:2] * directions_HDD[:, 1]
        probed = pruned_NHD + c_HD, positive_NHD, negative_NHD
        paper = probe_heads(*probed, heldout)
        expected = {
            "paper": paper.accuracy_H,
            "log_loss": paper.log_loss_H,
            "relational": relational_scores(*probed, heldout),
            "mse": mse_scores(dense_NHD, pruned_NHD),
            "kl": kl_scores(dense_NHD, pruned_NHD),
        }
        for name, score_H in expected.items():
            found = [row_LH[layer, head][name] for head in range(heads.heads)]
            assert found == pytest.approx(score_H.tolist(), rel=1e-5), name
    rows = read_table(captured.corpus(CELL) / "contrast.parquet", CONTRAST)
    pairs = encode_contrasts(pico.word_tokenizer(), [rows[n] for n in evenly_spread(len(rows), 4)], config.max_tokens)
    only_LHD = torch.zeros_like(lost_LHD)
    only_LHD[2, 1] = lost_LHD[2, 1]
    plain = sum(_margin(model, pair) for pair in pairs) / 4
    with offset_heads(model, only_LHD):
        edited = sum(_margin(model, pair) for pair in pairs) / 4
    assert row_LH[2, 1]["causal"] == pytest.approx(edited - plain, abs=1e-5)
    batches = margin_batches(model, pairs, token_budget=99, pad=0)
    gradient_LH = gradient_scores(model, batches, lost_LHD[:, None])
    assert [row_LH[heads.pair(n)]["gradient"] for n in range(heads.total)] == pytest.approx(
        gradient_LH.flatten().tolist(), rel=1e-3, abs=1e-5
    )


def test_without_model_scores_the_pruned_model_is_not_needed(captured: Layout) -> None:
    (captured.pruned(CELL) / "model.safetensors").unlink()
    run(CELL, ProbeConfig(scores=("paper", "random")), ENTRY, captured)
    assert read_table(captured.heads(CELL), HEADS)[0]["gradient"] is None


def test_what_does_not_belong_together_is_refused(captured: Layout) -> None:
    with pytest.raises(BadInput, match="a head has 6 components"):
        run(CELL, ProbeConfig(components=7), ENTRY, captured)
    write_tuples(captured, tuples(20, seed=5))
    with pytest.raises(BadInput, match="captured on other text"):
        run(CELL, ProbeConfig(scores=("gradient",)), ENTRY, captured)
    save_checkpoint(captured.pruned(CELL), pico.pico(seed=9), pico.word_tokenizer())
    with pytest.raises(BadInput, match="captured from another pruned model"):
        run(CELL, ProbeConfig(scores=("gradient",)), ENTRY, captured)
    capture(captured)
    with pytest.raises(BadInput, match="extracted for another pruned model"):
        run(CELL, ProbeConfig(scores=("gradient",)), ENTRY, captured)
    assert not captured.heads(CELL).exists()


def test_one_tuple_is_too_few(tmp_path: Path) -> None:
    layout = project(tmp_path, count=1)
    capture(layout)
    extract(CELL, ExtractConfig(), ENTRY, layout)
    with pytest.raises(BadInput, match="at least 2 contrast tuples"):
        run(Cell("pico", "wanda-0.5"), ProbeConfig(), ENTRY, layout)


def test_the_score_that_ranks_is_computed_and_no_other_unless_asked_for() -> None:
    assert ProbeConfig(score="causal").computed == ("causal",)
    assert ProbeConfig(scores=("gradient", "paper")).computed == ("paper", "gradient")
    with pytest.raises(ValueError, match="names a score twice"):
        ProbeConfig(scores=("paper", "paper"))
