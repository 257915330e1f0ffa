"""SlimGPT: the surgeon's formulas, exact structure in every family, and ratios that never decrease."""

import pytest
import torch

from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.prunings import parse_pruning
from restorelcc.models.architectures import blocks_of, family_of, out_projections
from restorelcc.sparsity.structure import head_groups, removed_parts
from restorelcc.stages.prune import PruneConfig
from restorelcc.stages.prune.prune import prune_model
from restorelcc.stages.prune.slimgpt import choose_parts, compensated, layer_ratios, part_errors, parts_to_remove
from restorelcc.stages.prune.sparsegpt import damped
from tests import pico
from tests.zeros import heads_removed_per_layer


def _hessian(inputs: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(4 * inputs, inputs, generator=torch.Generator().manual_seed(seed))
    x = x @ torch.randn(inputs, inputs, generator=torch.Generator().manual_seed(seed + 1))
    return damped(x.T @ x, 0.01)


@pytest.mark.parametrize("width", [1, 3])
def test_a_parts_error_is_what_its_removal_costs_after_compensation(width: int) -> None:
    hessian, weight = _hessian(12), torch.randn(5, 12)
    columns = torch.arange(12).reshape(-1, width)
    errors = part_errors(weight, torch.linalg.inv(hessian), columns)
    for part, expected in enumerate(errors):
        removed = torch.zeros(12, dtype=torch.bool).index_fill(0, columns[part], True)
        change = compensated(weight, hessian, removed) - weight
        torch.testing.assert_close(torch.trace(change @ hessian @ change.T), expected, rtol=1e-3, atol=1e-3)


def test_a_survivor_that_the_update_cancels_is_not_counted_as_removed() -> None:
    hessian, removed = torch.tensor([[2.0, 1.0], [1.0, 1.0]]), torch.tensor([True, False])
    result = compensated(torch.tensor([[1.0, -1.0]]), hessian, removed)
    assert result[0, 0] == 0
    assert 0 < result[0, 1] < 1e-37


def _least_loss(weight: torch.Tensor, hessian: torch.Tensor, removed: torch.Tensor) -> float:
    """tr(D H D^T) of the best weights without the removed columns, by the normal equations in float64."""
    hessian, kept = hessian.double(), ~removed
    change = -weight.double()
    change[:, kept] += torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ weight.double().T).T
    return float(torch.trace(change @ hessian @ change.T))


def _greedy(weight: torch.Tensor, hessian: torch.Tensor, columns: torch.Tensor, count: int) -> torch.Tensor:
    """[I], one part after another: the one without which the best weights lose least, with all that went before."""
    removed, gone = torch.zeros(weight.shape[1], dtype=torch.bool), set()
    for _ in range(count):
        tried = {
            part: _least_loss(weight, hessian, removed.index_fill(0, columns[part], True))
            for part in range(len(columns))
            if part not in gone
        }
        gone.add(best := min(tried, key=tried.__getitem__))
        removed[columns[best]] = True
    return removed


@pytest.mark.parametrize("width", [1, 2])
def test_each_part_is_chosen_with_those_before_it_gone(width: int) -> None:
    columns, moved = torch.arange(16).reshape(-1, width), 0
    for seed in range(4):
        hessian = _hessian(16, seed)
        weight = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed))
        removed = choose_parts(weight, hessian, columns, 5)
        assert torch.equal(removed.repeat_interleave(width), _greedy(weight, hessian, columns, 5))
        at_once = part_errors(weight, torch.linalg.inv(hessian), columns).argsort()[:5]
        moved += not removed[at_once].all()
    assert moved, "the updates between the rounds decide nothing here"


def test_two_channels_a_round_lose_little_more_than_one() -> None:
    hessian, weight = _hessian(64), torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    columns = torch.arange(64)[:, None]
    found = _least_loss(weight, hessian, choose_parts(weight, hessian, columns, 40))
    best = _least_loss(weight, hessian, _greedy(weight, hessian, columns, 40))
    errors = part_errors(weight, torch.linalg.inv(hessian), columns)
    at_once = torch.zeros(64, dtype=torch.bool).index_fill(0, errors.argsort()[:40], True)
    assert best <= found < 1.1 * best < _least_loss(weight, hessian, at_once)


def test_a_part_that_others_can_replace_goes_first() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator)
    x[:, 4:] = x[:, 2:4] @ torch.randn(2, 2, generator=generator)  # the third pair says nothing beside the second
    weight = torch.ones(3, 6)
    weight[:, :2] = 0.9  # the least in magnitude, but nothing replaces it
    removed = choose_parts(weight, damped(x.T @ x, 0.001), torch.arange(6).reshape(3, 2), 1)
    assert not removed[0]


def test_of_equal_errors_the_first_part_goes() -> None:
    removed = choose_parts(torch.ones(2, 4), torch.eye(4), torch.arange(4)[:, None], 2)
    assert removed.tolist() == [True, True, False, False]


def test_ratios_never_decrease_and_keep_their_mean() -> None:
    assert layer_ratios(0.2, 5, 1.0) == pytest.approx([0.2] * 5)
    ratios = layer_ratios(0.2, 5, 0.25)
    assert ratios == sorted(ratios)
    assert ratios[0] == pytest.approx(0.05)
    assert sum(ratios) / 5 == pytest.approx(0.2)
    assert layer_ratios(0.2, 1, 0.25) == [0.2]
    with pytest.raises(BadInput, match="slimgpt_first_layer"):
        layer_ratios(0.8, 5, 0.0)


def test_channels_make_up_what_whole_heads_cannot_give() -> None:
    # 4 groups of 100, 50 channels of 12: a tenth of 1,000 is no half group more than none, so channels give it all.
    assert parts_to_remove(0.1, 1000, 4, 100, 50, 12) == (0, 8)
    assert parts_to_remove(0.3, 1000, 4, 100, 50, 12) == (1, 17)
    assert parts_to_remove(0.9, 1000, 4, 100, 50, 12) == (3, 49)


@pytest.mark.parametrize("family", pico.FAMILIES)
@pytest.mark.parametrize("ratio", ["0.3", "0.45"])
def test_whole_heads_and_channels_go_in_every_family(family: str, ratio: str) -> None:
    model = pico.pico(family)
    results = prune_model(model, parse_pruning(f"slimgpt-{ratio}"), [pico.tokens()])
    share = sum(result.zeros for result in results) / sum(result.total for result in results)
    row, groups = family_of(model), head_groups(model)
    removed_heads = heads_removed_per_layer(model)
    assert len(set(removed_heads)) == 1
    assert 0 < removed_heads[0] < groups.query_heads
    for block, projection in zip(blocks_of(model), out_projections(model), strict=True):
        gone = removed_parts(projection.weight, groups.out_columns())
        for path, rows in zip(row.qkv, groups.rows(), strict=True):
            assert rows is not None
            zero_rows = (block.get_submodule(path).weight == 0).all(dim=1)
            assert torch.equal(zero_rows[rows].all(dim=1), gone), path
            assert int(zero_rows.sum()) == int(gone.sum()) * rows.shape[1], path
        channels = (block.get_submodule(row.ffn_out).weight == 0).all(dim=0)
        for path in row.ffn_in:
            assert torch.equal((block.get_submodule(path).weight == 0).all(dim=1), channels), path
        one_channel = sum(block.get_submodule(p).weight.numel() for p in (*row.ffn_in, row.ffn_out)) / len(channels)
        layer_total = sum(block.get_submodule(path).weight.numel() for path in row.linears)
        assert abs(share - float(ratio)) <= one_channel / layer_total


def test_multi_query_models_lose_single_query_heads_and_keep_their_keys() -> None:
    model = pico.pico("llama", num_key_value_heads=1)
    prune_model(model, parse_pruning("slimgpt-0.3"), [pico.tokens()])
    assert heads_removed_per_layer(model) == [1, 1, 1]
    assert all((block.self_attn.k_proj.weight != 0).all() for block in blocks_of(model))


def test_later_layers_lose_more_when_told_so() -> None:
    model = pico.pico()
    results = prune_model(model, parse_pruning("slimgpt-0.3"), [pico.tokens()], PruneConfig(slimgpt_first_layer=0.2))
    per_layer = [sum(r.zeros for r in results if r.layer == layer) for layer in range(3)]
    assert per_layer == sorted(per_layer)
    assert per_layer[0] < per_layer[2]


def test_a_layer_that_cannot_lose_so_much_fails() -> None:
    with pytest.raises(StageFailed, match="prune less"):
        prune_model(pico.pico(), parse_pruning("slimgpt-0.9"), [pico.tokens()])
