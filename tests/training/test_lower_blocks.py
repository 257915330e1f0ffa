"""Blocks below the lowest one that trains: computed once, and what is trained is the same to the bit."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from restorelcc.models.architectures import all_blocks, head_layout, numbered_blocks
from restorelcc.models.text import EncodedPair
from restorelcc.training import lower_blocks
from restorelcc.training.attached import HeadCompensation, SiteBiases, TrainableCompensation, attached, site_linears
from restorelcc.training.compensation import Pairs, fit_compensation, pairs_task
from restorelcc.training.config import FitConfig
from restorelcc.training.lower_blocks import bytes_kept, kept_below, lowest_trained
from tests import pico

CONFIG = FitConfig(learning_rates=(0.01, 0.03), epochs=2, batch_size=4)


def _pairs() -> Pairs:
    """Some end with the id that pads, one ends where another goes on, and one is there twice."""
    rows = pico.tokens(12, 9, seed=3).tolist()
    pairs = [EncodedPair(ids[: 4 + number % 5], 2 + number % 2, truncated=False) for number, ids in enumerate(rows)]
    pairs[1] = EncodedPair([*pairs[1].ids, 0, 0], 2, truncated=False)
    pairs[2] = EncodedPair(pairs[1].ids[:-1], 2, truncated=False)
    pairs[3] = pairs[0]
    return Pairs(pairs, pairs[:5], 0)


def _of_heads(model, *layers: int) -> TrainableCompensation:
    dim = head_layout(model).head_dim
    chosen = [(layer, head) for layer in layers for head in (0, 2)]
    directions_PDD = torch.eye(dim).expand(len(chosen), -1, -1)
    return TrainableCompensation(HeadCompensation(directions_PDD, chosen, initial_std=1e-2, seed=0))


def _calls(model) -> list[int]:
    """How often each block ran, counted from now on."""
    counts = [0] * len(all_blocks(model))

    def counted(number: int, own):
        def forward(*args, **kwargs):
            counts[number] += 1
            return own(*args, **kwargs)

        return forward

    for number, block in enumerate(all_blocks(model)):
        block.forward = counted(number, block.forward)
    return counts


def _fit(limit: int | None, monkeypatch: pytest.MonkeyPatch, *, counts: bool = False, **changes: object):
    model = pico.pico()
    if limit is not None:
        monkeypatch.setattr(lower_blocks, "bytes_kept", lambda *_: limit)
    calls = _calls(model) if counts else []
    config = CONFIG.model_copy(update=changes)
    best = fit_compensation(model, _of_heads(model, 2, 1), _pairs(), config, title="t")
    return [part.detach() for part in best.compensation.parameters()], best.choice, calls


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_kept_changes_no_bit_whatever_there_is_room_for(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [_fit(limit, monkeypatch, gradient_checkpointing=checkpointing) for limit in (1, 1500, 2**20)]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all(
        line.startswith("t: of what enters block 1, the lowest that trains, ") for line in said
    )
    for parts, choice, _ in found[1:]:
        assert choice == found[0][1]
        assert all(torch.equal(a, b) for a, b in zip(parts, found[0][0], strict=True))
    plain, choice, _ = _fit(0, monkeypatch, gradient_checkpointing=checkpointing)
    assert choice.valid_loss == pytest.approx(found[0][1].valid_loss, rel=1e-5)
    for a, b in zip(plain, found[0][0], strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_a_block_below_runs_once_for_each_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    distinct = len({tuple(pair.ids) for pair in _pairs().train})
    with_room, without = (_fit(limit, monkeypatch, counts=True)[2] for limit in (2**20, 1))
    assert with_room[0] == distinct == 11
    assert without[0] > 50
    assert with_room[1:] == without[1:]


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_losses_and_gradients_are_those_of_the_whole_model(family: str) -> None:
    model, pairs = pico.pico(family), _pairs()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained, found = _of_heads(model, 2), []
    sequences = [pair.ids for pair in pairs.train]
    for context in (nullcontext(), kept_below(model, 2, sequences, "t", limit=2**20)):
        with attached(model, trained), context:
            task = pairs_task(model, pairs)
            for _ in range(2):
                trained.zero_grad()
                loss = task.summed_loss([0, 1, 2, 3, 7])
                loss.backward()
            gradients: list[Tensor] = [part.grad.clone() for part in trained.parameters() if part.grad is not None]
            found.append([loss.detach(), torch.tensor(task.validate()), *gradients])
    for own, kept in zip(*found, strict=True):
        torch.testing.assert_close(own, kept, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any("forward" in block.__dict__ for block in all_blocks(model))


def test_other_forwards_are_left_alone() -> None:
    model = pico.pico()
    tokens_BT = pico.tokens(2, 5)
    with torch.no_grad():
        expected = model(input_ids=tokens_BT).logits
        with kept_below(model, 2, [tokens_BT[0].tolist()], "t", limit=2**20):
            counts = _calls(model)
            assert torch.equal(model(input_ids=tokens_BT).logits, expected), "one of the rows is not known"
            assert torch.equal(model(input_ids=tokens_BT, use_cache=False).logits, expected)
            assert counts == [2, 2, 2]
            model(input_ids=tokens_BT[:1], use_cache=False)
            found = model(input_ids=tokens_BT[:1], use_cache=False).logits
            torch.testing.assert_close(found, expected[:1])


def test_nothing_is_kept_where_the_first_block_trains_or_pairs_are_short() -> None:
    model = pico.pico()
    assert lowest_trained(model, _of_heads(model, 2, 1)) == 1
    everywhere = TrainableCompensation(None, SiteBiases(site_linears(model, ("down",))))
    assert lowest_trained(model, everywhere) == 0
    upper = TrainableCompensation(_of_heads(model, 2).heads, SiteBiases({"1.mlp.down_proj": torch.nn.Linear(2, 2)}))
    assert lowest_trained(model, upper) == 1
    for first, limit in ((0, 2**20), (1, None)):
        with kept_below(model, first, [[1, 2, 3]], "t", limit=limit):
            assert not any("forward" in block.__dict__ for block in all_blocks(model))


def test_in_a_hybrid_the_block_is_counted_among_all() -> None:
    hybrid = next(family for family in pico.CONFIGS if len(numbered_blocks(pico.pico(family))) < pico.LAYERS)
    model = pico.pico(hybrid)
    number = numbered_blocks(model)[-1][0]
    assert lowest_trained(model, _of_heads(model, len(numbered_blocks(model)) - 1)) == number


@pytest.mark.parametrize(
    ("device", "width", "lengths", "expected"),
    [
        ("cpu", 576, [87.0] * 460, 460 * 87 * 576 * 4),  # SmolLM2-135M, 400 pairs
        ("cpu", 576, [87.0] * 4600, 2**29),
        ("cpu", 64, [24.0] * 2400, 0),  # the embedded model
        ("cuda", 4096, [160.0] * 1500, 1500 * 160 * 4096 * 4),
    ],
)
def test_bytes_that_are_kept(device: str, width: int, lengths: list[float], expected: int) -> None:
    assert bytes_kept(device, width, 4, lengths) == expected
