"""Pruners against their formulas, and the block-by-block walk against the model's own forward."""

import pytest
import torch

from restorelcc.core.architectures import blocks_of, prunable_linears
from restorelcc.core.errors import BadInput
from restorelcc.core.pruning import PRUNERS, parse_pruning
from restorelcc.core.sparsity import holds_pattern, pruned_count, zeros_per_row
from restorelcc.prune.prune import prune_model
from restorelcc.prune.scores import magnitude_score, wanda_score
from restorelcc.prune.walk import squared_inputs, walk_blocks
from tests import pico


def test_wanda_equals_its_formula_on_a_hand_made_example() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 0.5, 1.0]])
    inputs = torch.tensor([[3.0, 0.0, 1.0], [4.0, 2.0, 0.0]])  # two tokens; norms 5, 2, 1
    score = wanda_score(weight, inputs.double().square().sum(dim=0))
    assert score.tolist() == [[5.0, 4.0, 3.0], [20.0, 1.0, 1.0]]
    assert magnitude_score(weight).tolist() == [[1.0, 2.0, 3.0], [4.0, 0.5, 1.0]]


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_the_walk_gives_every_block_the_inputs_of_the_models_own_forward(family: str) -> None:
    model, batches = pico.pico(family), [pico.tokens(3, 10), pico.tokens(2, 5, seed=1)]
    expected: dict[int, list[torch.Tensor]] = {}
    handles = [
        block.register_forward_hook(lambda _m, _i, out, layer=layer: expected.setdefault(layer, []).append(out))
        for layer, block in enumerate(blocks_of(model))
    ]
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch, use_cache=False)
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        for step in walk_blocks(model, batches):
            for ours, own in zip(step.forward(), expected[step.layer], strict=True):
                assert torch.equal(ours, own[0] if isinstance(own, tuple) else own)


def test_squares_are_summed_over_all_tokens_of_all_batches() -> None:
    linear = torch.nn.Linear(3, 2)
    with squared_inputs({"a": linear}) as squares:
        linear(torch.tensor([[[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]]))
        linear(torch.tensor([[[0.0, 1.0, 5.0]]]))
    assert squares["a"].tolist() == [10.0, 5.0, 25.0]


def test_wanda_calibrates_each_block_on_the_pruned_blocks_before_it() -> None:
    model, reference = pico.pico(), pico.pico()
    pruning, batch = parse_pruning("wanda-0.5"), pico.tokens(4, 12)
    prune_model(model, pruning, [batch])
    # Give the reference the pruned first block; its second block's inputs then decide the second block's mask.
    blocks_of(reference)[0].load_state_dict(blocks_of(model)[0].state_dict())
    name, linear = next((n, m) for layer, n, m in prunable_linears(reference) if layer == 1)
    with squared_inputs({name: linear}) as squares, torch.no_grad():
        reference(input_ids=batch)
    score = wanda_score(linear.weight, squares[name])
    kept = score.argsort(dim=1, stable=True)[:, pruned_count(linear.in_features, pruning.sparsity) :]
    expected = torch.zeros_like(linear.weight, dtype=torch.bool).scatter_(1, kept, True)
    found = {n: m for _, n, m in prunable_linears(model)}[name].weight
    assert torch.equal(found != 0, expected)
    assert torch.equal(found[expected], linear.weight[expected]), "surviving weights keep their values"


@pytest.mark.parametrize("family", pico.FAMILIES)
@pytest.mark.parametrize("pruner", PRUNERS)
def test_zero_counts_are_exact_in_every_row(family: str, pruner: str) -> None:
    model, pruning = pico.pico(family), parse_pruning(f"{pruner}-0.6")
    prune_model(model, pruning, [pico.tokens()])
    for _, name, linear in prunable_linears(model):
        wanted = pruned_count(linear.in_features, pruning.sparsity)
        assert zeros_per_row(linear.weight).tolist() == [wanted] * linear.out_features, name


@pytest.mark.parametrize("family", pico.FAMILIES)
@pytest.mark.parametrize("pruner", PRUNERS)
def test_patterns_are_exact_in_every_group(family: str, pruner: str) -> None:
    model = pico.pico(family)
    prune_model(model, parse_pruning(f"{pruner}-1of4"), [pico.tokens()])
    for _, name, linear in prunable_linears(model):
        assert holds_pattern(linear.weight, 1, 4), name
        assert int((linear.weight == 0).sum()) == linear.weight.numel() * 3 // 4, name


def test_only_the_targeted_linears_change() -> None:
    model, before = pico.pico(), pico.pico().state_dict()
    prune_model(model, parse_pruning("wanda-0.5"), [pico.tokens()])
    targeted = {f"{name}.weight" for _, name, _ in prunable_linears(model)}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != (name in targeted), name


def test_weights_that_are_not_numbers_are_refused() -> None:
    model = pico.pico()
    next(prunable_linears(model))[2].weight[0, 0] = float("nan")
    for pruner in PRUNERS:
        with pytest.raises(BadInput, match="NaN"):
            prune_model(model, parse_pruning(f"{pruner}-0.5"), [pico.tokens()])
