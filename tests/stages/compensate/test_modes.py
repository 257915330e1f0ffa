"""Sites, starts, distillation, the parts of the equation, and the chosen ratio."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from restorelcc.base.cell import Cell
from restorelcc.base.documents import read_json
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.compensation.file import read_compensation
from restorelcc.compensation.fold import fold
from restorelcc.compensation.hooks import compensated
from restorelcc.models.architectures import FAMILIES, head_layout, out_projections
from restorelcc.models.checkpoints import load_model
from restorelcc.models.heads import main_component
from restorelcc.models.tensors import read_tensors
from restorelcc.release.export.cell import cell_options, cell_parts, export_cell
from restorelcc.stages.compensate import CompensateConfig, DistillConfig
from restorelcc.stages.compensate.heads import one_standard_error_rule, smallest_good_ratio
from restorelcc.stages.compensate.stage import run
from restorelcc.stages.compensate.start import initial_compensation, lessons, needs_dense
from restorelcc.stages.evaluate.stage import run_restored
from restorelcc.stages.report.results import result_row
from restorelcc.training.attached import SiteBiases, TrainableCompensation, attached, site_linears, site_paths
from restorelcc.training.closed_form import ridge_offsets
from restorelcc.training.compensation import Best
from restorelcc.training.config import SITES
from restorelcc.training.distillation import dense_targets, distilled_loss, divergence
from restorelcc.training.losses import response_batch, response_loss
from restorelcc.training.pairs import read_pairs
from tests import pico
from tests.recovery_project import CELL, ENTRY, EVALUATE, evaluated_project

RESTORED = Cell(CELL.model, CELL.pruning, "0.5")
CONFIG = CompensateConfig(learning_rates=(0.02,), epochs=1, batch_size=8, max_tokens=16)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return evaluated_project(tmp_path_factory.mktemp("project"))


def _config(**changes: object) -> CompensateConfig:
    return CompensateConfig.model_validate(CONFIG.model_dump() | changes)


def _initial(layout: Layout, config: CompensateConfig, ratio_heads: list[tuple[int, int]]) -> TrainableCompensation:
    pairs = read_pairs(layout.corpus(CELL), layout.pruned(CELL), CONFIG)
    components = read_tensors(layout.components(CELL), ("directions", "loadings"))[0]
    learned = lessons(load_model(layout.dense(CELL), torch.float32, CPU), config, pairs)
    pruned = load_model(layout.pruned(CELL), torch.float32, CPU)
    return initial_compensation(pruned, ratio_heads, components, config, pairs, learned)


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_biases_on_every_site_attached_equal_folded(family: str) -> None:
    model = pico.pico(family)
    linears = site_linears(model, SITES)
    assert len(linears) == pico.LAYERS * len(FAMILIES[model.config.model_type].linears)
    generator = torch.Generator().manual_seed(1)
    start = {name: 0.3 * torch.randn(linear.out_features, generator=generator) for name, linear in linears.items()}
    trained = TrainableCompensation(None, SiteBiases(linears, start))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        base = model(input_ids=pico.tokens()).logits
        with attached(model, trained):
            ours = model(input_ids=pico.tokens()).logits
        assert torch.equal(model(input_ids=pico.tokens()).logits, base), "on leaving, the model is as it was"
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        fold(model, trained.frozen(head_layout(model)))
        folded = model(input_ids=pico.tokens()).logits
    assert torch.equal(ours, folded)
    assert (ours - base).abs().max() > 1e-3


def test_sites_are_named_once_and_in_forward_order() -> None:
    assert site_paths(FAMILIES["llama"], ("down", "q")) == ["self_attn.q_proj", "mlp.down_proj"]
    assert site_paths(FAMILIES["gpt_neox"], ("q", "k", "v", "gate", "up")) == [
        "attention.query_key_value",
        "mlp.dense_h_to_4h",
    ]
    for family in FAMILIES.values():
        assert site_paths(family, SITES) == list(family.linears)


@pytest.mark.parametrize(
    "changes",
    [
        {"sites": SITES},
        {"sites": ("down", "v")},
        {"start": "meanshift", "sites": ("o", "up"), "epochs": 4},
        {"start": "ridge", "epochs": 4},
        {"distill": {"weight": 0.7, "top_k": 8}},
    ],
    ids=str,
)
def test_every_mode_trains_and_folds_and_the_widest_is_evaluated(changes: dict, layout: Layout) -> None:
    run(RESTORED, _config(**changes), ENTRY, layout)
    training = read_json(layout.training(RESTORED))
    assert training["runs"][0]["valid_losses"][-1] < training["runs"][0]["initial_loss"]
    found, metadata = read_compensation(layout.compensation(RESTORED))
    assert ("dense" in metadata) == needs_dense(_config(**changes))
    sites = changes.get("sites", ("o",))
    assert found.compensates_heads == ("o" in sites)
    assert {site.linear for site in found.sites} == set(
        site_paths(FAMILIES["llama"], [site for site in sites if site != "o"])
    )
    model = load_model(layout.pruned(CELL), torch.float32, CPU)
    with torch.no_grad():
        before = model(input_ids=pico.tokens()).logits
        with compensated(model, found):
            wanted = model(input_ids=pico.tokens()).logits
        fold(model, found)
        torch.testing.assert_close(model(input_ids=pico.tokens()).logits, wanted, atol=1e-5, rtol=1e-4)
    assert (wanted - before).abs().max() > 1e-3
    if len(sites) < 7:
        return
    run_restored(RESTORED, EVALUATE, ENTRY, layout)
    metrics = read_json(layout.metrics(RESTORED))
    assert metrics["sparsity"] == pytest.approx(0.5)
    assert metrics["params_trained"] == sum(value.numel() for value in found.sites.values()) + 2 * 6 * len(
        training["heads"]
    ) * ("o" in sites)


@pytest.mark.parametrize(("parts", "zero"), [(("beta",), "bias"), (("bias",), "beta")])
def test_a_part_that_does_not_train_stays_zero(parts: tuple, zero: str, layout: Layout) -> None:
    run(RESTORED, _config(parts=parts), ENTRY, layout)
    tensors, metadata = read_tensors(layout.compensation(RESTORED), ("beta", "bias", "offset"))
    assert not tensors[zero].any()
    assert int(metadata["params_trained"]) == tensors[parts[0]].numel(), "and is not counted"
    assert tensors[parts[0]].any()
    assert tensors["offset"].any()


def test_the_mean_shift_start_is_all_components(layout: Layout) -> None:
    heads = [(2, 1), (0, 3)]
    components = read_tensors(layout.components(CELL), ("directions", "loadings"))[0]
    expected = main_component(components["directions"], components["loadings"], pico.HEAD_DIM)
    for parts in (("beta", "bias"), ("bias",)):
        start = _initial(layout, _config(start="meanshift", parts=parts), heads)
        assert start.heads is not None
        for number, head in enumerate(heads):
            torch.testing.assert_close(start.heads.offset_PD()[number].detach(), expected[head])


def test_the_ridge_finds_planted_offsets_and_damping_shrinks_them() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 2, 4, generator=generator)
    planted = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    lost = torch.einsum("mpd,pd->m", weight.double(), planted)
    torch.testing.assert_close(ridge_offsets(weight, lost, 1e-12), planted)
    assert ridge_offsets(weight, lost, 1.0).norm() < 0.9 * planted.norm()


def test_the_ridge_start_moves_the_mean_output_towards_the_dense_one(layout: Layout) -> None:
    heads = [(1, head) for head in range(pico.HEADS)]
    start = _initial(layout, _config(start="ridge", ridge=1e-6), heads)
    assert start.heads is not None
    dense, pruned = (load_model(f, torch.float32, CPU) for f in (layout.dense(CELL), layout.pruned(CELL)))
    pairs = read_pairs(layout.corpus(CELL), layout.pruned(CELL), CONFIG)

    def mean_output(model) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        handle = out_projections(model)[1].register_forward_hook(lambda _m, _i, out: seen.append(out.flatten(0, 1)))
        with torch.no_grad():
            for pair in pairs.train:
                model(input_ids=torch.tensor([pair.ids]))
        handle.remove()
        return torch.cat(seen).mean(dim=0)

    wanted, before = mean_output(dense), mean_output(pruned)
    with attached(pruned, start):
        after = mean_output(pruned)
    assert (after - wanted).norm() < 0.05 * (before - wanted).norm()


def test_the_divergence_is_zero_for_equal_models_and_exact_when_all_tokens_are_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 5, 9, generator=generator)
    p = other.softmax(-1)
    top = p.topk(9, dim=-1)
    expected = torch.nn.functional.kl_div(logits.log_softmax(-1), p, reduction="sum")
    torch.testing.assert_close(divergence(logits, top.indices, top.values), expected, atol=1e-4, rtol=1e-4)
    few = p.topk(3, dim=-1)
    assert 0 < divergence(logits, few.indices, few.values) <= expected
    assert abs(divergence(other, few.indices, few.values).item()) < 1e-5


def test_a_model_taught_by_itself_has_the_response_loss_alone() -> None:
    model, pairs = pico.pico(), [*_pairs()]
    targets = dense_targets(model, pairs, 0, 16)
    assert [len(target.tokens_RK) for target in targets] == [len(pair.ids) - pair.question_tokens for pair in pairs]
    with torch.no_grad():
        plain = response_loss(model, *response_batch(pairs, 0, CPU))
        taught = distilled_loss(model, pairs, targets, 0, weight=0.25)
    torch.testing.assert_close(taught, 0.75 * plain, atol=1e-4, rtol=1e-4)


def test_the_weight_is_the_share_of_the_divergence_in_the_loss() -> None:
    model, other, pairs = pico.pico(), pico.pico(seed=1), [*_pairs()]
    for each in (model, other):
        each.get_output_embeddings().weight.mul_(20)  # predictions that differ by more than rounding
    targets = dense_targets(other, pairs, 0, pico.VOCABULARY)
    plain = lost = 0.0
    with torch.no_grad():
        for pair in pairs:
            ids, at = torch.tensor([pair.ids]), slice(pair.question_tokens - 1, -1)
            q, p = (each(input_ids=ids).logits[0, at].log_softmax(-1) for each in (model, other))
            plain -= float(q.gather(1, ids[0, pair.question_tokens :, None]).sum())
            lost += float((p.exp() * (p - q)).sum())
        taught = float(distilled_loss(model, pairs, targets, 0, weight=0.25))
    assert taught == pytest.approx(0.75 * plain + 0.25 * lost, rel=1e-4)
    assert lost > 0.1 * plain


def _pairs():
    from restorelcc.models.text import EncodedPair

    rows = pico.tokens(6, 7, seed=3).tolist()
    return [EncodedPair(ids[: 5 + number % 3], 3 + number % 2, truncated=False) for number, ids in enumerate(rows)]


def test_the_smallest_ratio_within_one_standard_error_is_taken() -> None:
    torch.manual_seed(0)
    best = torch.rand(400, dtype=torch.float64)
    noise = torch.randn(400, dtype=torch.float64)
    noise -= noise.mean()
    close, far = best + 0.02 * noise + 0.0005, best + 0.02 * noise + 0.1
    assert one_standard_error_rule({0.05: far, 0.1: close, 0.25: best, 0.5: best + 0.01}) == 0.1
    assert one_standard_error_rule({0.05: far, 0.1: far, 0.25: best}) == 0.25
    assert one_standard_error_rule({0.05: best, 0.1: best}) == 0.05


def test_a_ratio_that_cannot_be_trained_is_no_ratio_that_rounds_to_no_head(layout: Layout) -> None:
    def trained(ratio: float) -> Best:
        raise BadInput(f"the state of ratio {ratio:g} is damaged")

    model = load_model(layout.pruned(CELL), torch.float32, CPU)
    pairs = read_pairs(layout.corpus(CELL), layout.pruned(CELL), CONFIG)
    with pytest.raises(BadInput, match=r"the state of ratio 0\.25 is damaged"):
        smallest_good_ratio(model, pairs, (0.001, 0.25, 0.5), trained)


def test_an_automatic_ratio_is_one_of_those_allowed_and_its_heads_are_kept(layout: Layout, tmp_path: Path) -> None:
    cell = Cell(CELL.model, CELL.pruning, "auto")
    run(cell, _config(auto_ratios=(0.001, 0.25, 0.5)), ENTRY, layout)
    training = read_json(layout.training(cell))
    assert [row["head_ratio"] for row in training["ratios"]] == [0.25, 0.5], "0.001 of 12 heads is none"
    assert training["head_ratio"] in (0.25, 0.5)
    assert len(training["heads"]) == round(12 * training["head_ratio"])
    run_restored(cell, EVALUATE, ENTRY, layout)
    metrics = read_json(layout.metrics(cell))
    assert (metrics["head_ratio"], metrics["head_ratio_auto"]) == (training["head_ratio"], True)
    assert result_row(cell, metrics, {})["what"] == f"heads auto ({training['head_ratio']:g})"
    assert layout.metrics(cell).name == "heads-auto.json"
    options = cell_options(cell, lambda _alias, _name: CONFIG, layout)
    record = export_cell(cell_parts(cell, layout), tmp_path / "out", options)
    assert (record["head_ratio"], record["head_ratio_auto"]) == (training["head_ratio"], True)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"# Restored pico wanda-0.5 {training['head_ratio']:g}" in card
    assert f"{metrics['perplexity']['value']:.2f} (heldout)" in card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sites": ("oo",)}, "sites"),
        ({"sites": ("o", "o")}, "twice"),
        ({"parts": ()}, "parts"),
        ({"auto_ratios": (0.0, 0.5)}, "above 0"),
        ({"distill": {"weight": 2.0}}, "weight"),
    ],
)
def test_bad_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _config(**changes)


def test_only_modes_that_ask_the_dense_model_load_it(layout: Layout, tmp_path: Path) -> None:
    assert not needs_dense(_config())
    assert not needs_dense(_config(start="meanshift"))
    assert not needs_dense(_config(sites=SITES))
    assert needs_dense(_config(start="meanshift", sites=SITES))
    assert needs_dense(_config(distill=DistillConfig()))
