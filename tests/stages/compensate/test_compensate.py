"""Training moves beta and b and nothing else; what it learns is what the fold writes."""

import math

import pytest
import torch

from restorelcc.base.errors import StageFailed
from restorelcc.base.prunings import parse_pruning
from restorelcc.compensation.fold import fold
from restorelcc.compensation.hooks import offset_heads
from restorelcc.models.architectures import head_layout
from restorelcc.models.text import EncodedPair
from restorelcc.stages.compensate import CompensateConfig
from restorelcc.stages.prune.prune import prune_model
from restorelcc.training.attached import HeadCompensation, TrainableCompensation, attached
from restorelcc.training.checkpointing import checkpointed_blocks
from restorelcc.training.compensation import Pairs, pairs_task
from restorelcc.training.loop import Fitted, fit
from restorelcc.training.losses import IGNORED, mean_loss, response_batch, response_loss
from tests import pico

HEADS = [(2, 1), (1, 3)]


def _compensation(std: float = 0.1, seed: int = 0) -> HeadCompensation:
    generator = torch.Generator().manual_seed(5)
    directions, _ = torch.linalg.qr(torch.randn(len(HEADS), pico.HEAD_DIM, pico.HEAD_DIM, generator=generator))
    return HeadCompensation(directions, HEADS, initial_std=std, seed=seed)


def _pairs(count: int = 24) -> list[EncodedPair]:
    rows = pico.tokens(count, 7, seed=3).tolist()
    return [EncodedPair(ids[: 5 + number % 3], 3 + number % 2, truncated=False) for number, ids in enumerate(rows)]


def _train(model: torch.nn.Module, compensation: HeadCompensation, rate: float = 0.02, epochs: int = 3):
    return _fit(model, compensation, CompensateConfig(epochs=epochs, batch_size=8), rate)


def _fit(model, compensation: HeadCompensation, config: CompensateConfig, rate: float = 0.02, store=None) -> Fitted:
    whole = TrainableCompensation(compensation)
    task = pairs_task(model, Pairs(_pairs(), _pairs(), 0))
    with attached(model, whole), checkpointed_blocks(model, config.gradient_checkpointing):
        return fit(whole, task, config, learning_rate=rate, title="test", store=store)


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_attached_equals_hooked_equals_folded(family: str) -> None:
    model = pico.pico(family)
    layout = head_layout(model)
    generator = torch.Generator().manual_seed(5)
    directions, _ = torch.linalg.qr(torch.randn(2, layout.head_dim, layout.head_dim, generator=generator))
    compensation = HeadCompensation(directions, HEADS, initial_std=0.5, seed=0)
    with torch.no_grad():
        base = model(input_ids=pico.tokens()).logits
        with attached(model, TrainableCompensation(compensation)):
            ours = model(input_ids=pico.tokens()).logits
        offset = compensation.offset_LHD(layout)
        with offset_heads(model, offset):
            hooked = model(input_ids=pico.tokens()).logits
        fold(model, offset)
        folded = model(input_ids=pico.tokens()).logits
    torch.testing.assert_close(ours, hooked, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(folded, hooked, atol=1e-5, rtol=1e-5)
    assert (hooked - base).abs().max() > 1e-3


def test_the_offset_is_directions_weighted_by_beta_plus_bias_at_the_chosen_heads() -> None:
    compensation, layout = _compensation(), head_layout(pico.pico())
    offset = compensation.offset_LHD(layout)
    for number, (layer, head) in enumerate(HEADS):
        v, beta, bias = compensation.directions_PDD[number], compensation.beta[number], compensation.bias[number]
        expected = sum(beta[i] * v[i] for i in range(pico.HEAD_DIM)) + bias
        torch.testing.assert_close(offset[layer, head], expected)
    assert int(offset.abs().sum(-1).count_nonzero()) == len(HEADS)


def test_training_lowers_the_loss_and_leaves_every_tensor_of_the_model_bit_identical() -> None:
    model = pico.pico()
    prune_model(model, parse_pruning("wanda-0.5"), [pico.tokens()])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compensation = _compensation()
    directions = compensation.directions_PDD.clone()
    start = compensation.beta.detach().clone()
    result = _train(model, compensation)
    assert result.valid_loss < result.initial_loss
    assert not torch.equal(compensation.beta, start)
    assert torch.equal(compensation.directions_PDD, directions)
    assert set(model.state_dict()) == set(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_two_runs_are_byte_identical_and_seeds_differ() -> None:
    first, second, other = _compensation(), _compensation(), _compensation(seed=1)
    for compensation in (first, second, other):
        _train(pico.pico(), compensation)
    assert torch.equal(first.offset_PD(), second.offset_PD())
    assert not torch.equal(first.offset_PD(), other.offset_PD())


def test_only_response_tokens_carry_loss() -> None:
    pairs = [EncodedPair([5, 6, 7, 8], 2, truncated=False), EncodedPair([9, 10], 1, truncated=False)]
    tokens, labels = response_batch(pairs, 0, torch.device("cpu"))
    assert tokens.tolist() == [[5, 6, 7, 8], [9, 10, 0, 0]]
    assert labels.tolist() == [[IGNORED, IGNORED, 7, 8], [IGNORED, 10, IGNORED, IGNORED]]
    model = pico.pico()
    with torch.no_grad():
        log_p = model(input_ids=tokens).logits.log_softmax(-1)
        expected = -(log_p[0, 1, 7] + log_p[0, 2, 8] + log_p[1, 0, 10])
        assert math.isclose(response_loss(model, tokens, labels).item(), expected.item(), rel_tol=1e-5)
    assert math.isclose(mean_loss(model, pairs, 0), expected.item() / 3, rel_tol=1e-5)


def test_blocks_below_the_lowest_chosen_head_are_not_back_propagated() -> None:
    model, compensation = pico.pico(), _compensation()
    seen: dict[int, bool] = {}
    handles = [
        block.register_forward_hook(lambda _m, _i, out, layer=layer: seen.__setitem__(layer, out.requires_grad))
        for layer, block in enumerate(model.model.layers)
    ]
    with attached(model, TrainableCompensation(compensation)):
        model(input_ids=pico.tokens())
    for handle in handles:
        handle.remove()
    assert seen == {0: False, 1: True, 2: True}


def test_a_loss_that_is_no_number_stops_and_names_the_step() -> None:
    model = pico.pico()
    model.lm_head.weight[5] = float("inf")
    with pytest.raises(StageFailed, match=r"step 1 of 9.*learning_rates"):
        _train(model, _compensation())


def test_a_bf16_model_is_compensated_in_float32() -> None:
    model, compensation = pico.pico().to(torch.bfloat16), _compensation()
    _train(model, compensation, epochs=1)
    assert compensation.beta.dtype == compensation.bias.dtype == torch.float32
    assert model.model.layers[0].self_attn.o_proj.weight.dtype == torch.bfloat16
