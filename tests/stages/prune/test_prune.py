"""Pruners against their formulas, and the block-by-block walk against the model's own forward."""

import pytest
import torch

from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.prunings import PRUNERS, UNSTRUCTURED_PRUNERS, Sparsity, parse_pruning
from restorelcc.models.architectures import blocks_of, prunable_linears
from restorelcc.models.walk import walk_blocks
from restorelcc.sparsity.patterns import pruned_count, removal_mask
from restorelcc.stages.prune.inputs import observed_inputs
from restorelcc.stages.prune.prune import magnitude_score, prune_model, wanda_score
from tests import pico
from tests.zeros import holds_pattern, zeros_per_row


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
            for ours, own in zip(step.outputs(), expected[step.layer], strict=True):
                assert torch.equal(ours, own[0] if isinstance(own, tuple) else own)


def test_squares_are_summed_over_all_tokens_of_all_batches() -> None:
    linear = torch.nn.Linear(3, 2)
    with observed_inputs({"a": linear}, squares=True) as inputs:
        linear(torch.tensor([[[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]]))
        linear(torch.tensor([[[0.0, 1.0, 5.0]]]))
    assert inputs.squares_I("a").tolist() == [10.0, 5.0, 25.0]


def test_gram_and_sample_count_tokens_over_all_calls_and_are_shared() -> None:
    first, second, other = (torch.nn.Linear(3, 2) for _ in range(3))
    x = torch.randn(7, 3)
    with observed_inputs({"a": first, "b": second, "c": other}, gram_of=["a"], stride=3) as inputs:
        for part in (x[:2], x[2:]):
            first(part)
            second(part)
            other(part + 1)
    assert inputs.groups(["a", "b", "c"]) == [["a", "b"], ["c"]]
    torch.testing.assert_close(inputs.gram_II("b"), x.T @ x)
    assert torch.equal(inputs.sampled_KI("b"), x[::3])
    assert torch.equal(inputs.sampled_KI("c"), x[::3] + 1)


def test_wanda_calibrates_each_block_on_the_pruned_blocks_before_it() -> None:
    model, reference = pico.pico(), pico.pico()
    pruning, batch = parse_pruning("wanda-0.5"), pico.tokens(4, 12)
    prune_model(model, pruning, [batch])
    # Give the reference the pruned first block; its second block's inputs then decide the second block's mask.
    blocks_of(reference)[0].load_state_dict(blocks_of(model)[0].state_dict())
    name, linear = next((n, m) for layer, n, m in prunable_linears(reference) if layer == 1)
    with observed_inputs({name: linear}, squares=True) as inputs, torch.no_grad():
        reference(input_ids=batch)
    score = wanda_score(linear.weight, inputs.squares_I(name))
    kept = score.argsort(dim=1, stable=True)[:, pruned_count(linear.in_features, pruning.sparsity) :]
    expected = torch.zeros_like(linear.weight, dtype=torch.bool).scatter_(1, kept, True)
    found = {n: m for _, n, m in prunable_linears(model)}[name].weight
    assert torch.equal(found != 0, expected)
    assert torch.equal(found[expected], linear.weight[expected]), "surviving weights keep their values"


@pytest.mark.parametrize("family", pico.FAMILIES)
@pytest.mark.parametrize("pruner", UNSTRUCTURED_PRUNERS)
def test_zero_counts_are_exact_in_every_row(family: str, pruner: str) -> None:
    model, pruning = pico.pico(family), parse_pruning(f"{pruner}-0.6")
    prune_model(model, pruning, [pico.tokens()])
    for _, name, linear in prunable_linears(model):
        wanted = pruned_count(linear.in_features, pruning.sparsity)
        assert zeros_per_row(linear.weight).tolist() == [wanted] * linear.out_features, name


@pytest.mark.parametrize("family", pico.FAMILIES)
@pytest.mark.parametrize("pruner", UNSTRUCTURED_PRUNERS)
@pytest.mark.parametrize(("keep", "group"), [(2, 4), (4, 8), (1, 4)])
def test_patterns_are_exact_in_every_group(family: str, pruner: str, keep: int, group: int) -> None:
    model = pico.pico(family)
    prune_model(model, parse_pruning(f"{pruner}-{keep}of{group}"), [pico.tokens()])
    for _, name, linear in prunable_linears(model):
        kept = (linear.weight.reshape(-1, group) != 0).sum(dim=1)
        assert kept.tolist() == [keep] * len(kept), name
        assert holds_pattern(linear.weight, keep, group), name


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


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_the_table_targets_every_linear_of_a_block(family: str) -> None:
    model = pico.pico(family)
    inside = {
        id(module) for block in blocks_of(model) for module in block.modules() if isinstance(module, torch.nn.Linear)
    }
    assert {id(linear) for _, _, linear in prunable_linears(model)} == inside


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_weight_with_other_than_the_zeros_asked_for_fails(extra: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(score: torch.Tensor, sparsity: Sparsity, _counts: None) -> torch.Tensor:
        mask = removal_mask(score, sparsity)
        row = mask[0] if extra < 0 else ~mask[0]
        mask[0, row.nonzero()[0]] = extra > 0
        return mask

    monkeypatch.setattr("restorelcc.stages.prune.prune.removal_mask", wrong)
    with pytest.raises(StageFailed, match=r"q_proj has \d+ zeros after wanda-0\.5, 288 were asked for"):
        prune_model(pico.pico(hidden_size=24), parse_pruning("wanda-0.5"), [pico.tokens()])


def test_zeros_that_were_there_before_are_no_failure() -> None:
    model = pico.pico()
    pruning = parse_pruning("wanda-0.5")
    prune_model(model, pruning, [pico.tokens()])
    prune_model(model, parse_pruning("wanda-0.3"), [pico.tokens()])
    for _, name, linear in prunable_linears(model):
        wanted = pruned_count(linear.in_features, pruning.sparsity)
        assert zeros_per_row(linear.weight).tolist() == [wanted] * linear.out_features, name


def test_equal_arguments_of_all_batches_are_kept_once() -> None:
    model = pico.pico("gemma2")  # a sliding window shorter than the batch, so that a mask is an argument
    steps = walk_blocks(model, [pico.tokens(2, 12, seed=seed) for seed in range(5)])
    step = next(steps)
    tensors = {
        id(value)
        for _, kwargs in step.arguments
        for value in (*kwargs.values(), *(kwargs.get("position_embeddings") or ()))
        if isinstance(value, torch.Tensor)
    }
    assert 0 < len(tensors) < 6
    steps.close()


def test_a_walk_that_is_broken_off_leaves_gradients_as_they_were() -> None:
    for _ in walk_blocks(pico.pico(), [pico.tokens()]):
        assert torch.is_grad_enabled()
        break
    with pytest.raises(BadInput):
        broken = pico.pico()
        next(prunable_linears(broken))[2].weight[0, 0] = float("nan")
        prune_model(broken, parse_pruning("wanda-0.5"), [pico.tokens()])
    assert torch.is_grad_enabled()
