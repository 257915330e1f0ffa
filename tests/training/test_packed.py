"""Pairs that share a line of a training batch: no loss and no gradient of theirs depends on the others."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from restorelcc.models.architectures import all_blocks
from restorelcc.models.packing import can_pack, even_lines
from restorelcc.models.text import EncodedPair
from restorelcc.stages.recover.adapters import with_adapters
from restorelcc.training import losses
from restorelcc.training.attached import SiteBiases, TrainableCompensation, attached, site_linears
from restorelcc.training.compensation import Pairs, pairs_task
from restorelcc.training.config import SITES
from restorelcc.training.distillation import dense_targets, distilled_loss
from restorelcc.training.losses import IGNORED, lines_that_pay, packed_batch, pair_losses, parts_of_batch
from restorelcc.training.lower_blocks import kept_below
from tests import pico

LENGTHS = (15, 4, 9, 3, 7, 12, 2, 5)


@pytest.fixture
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are shared although a pass over models as small as these costs as much as any number of tokens."""
    monkeypatch.setattr(losses, "enough_tokens", lambda _model: 1)


def _pairs() -> list[EncodedPair]:
    rows = pico.tokens(len(LENGTHS), max(LENGTHS), seed=5).tolist()
    return [EncodedPair(ids[:size], max(1, size // 3), False) for ids, size in zip(rows, LENGTHS, strict=True)]


def _cost(lengths: list[int], lines: list[list[int]], width: int) -> int:
    longest = max(sum(lengths[row] for row in line) for line in lines)
    return len(lines) * longest * (6 * width + longest)


@pytest.mark.parametrize("width", [1, 64, 576])
def test_lines_take_the_least_time_or_nearly_so(width: int) -> None:
    lengths = [15, 4, 9, 3, 7, 12]
    found = even_lines(lengths, width, 4096)
    assert sorted(row for line in found for row in line) == list(range(len(lengths)))
    ways = ([[row for row in range(6) if way[row] == line] for line in set(way)] for way in product(range(6), repeat=6))
    assert _cost(lengths, found, width) <= 1.05 * min(_cost(lengths, lines, width) for lines in ways)


def test_one_line_where_matrices_cost_the_most_and_a_line_each_where_attention_does() -> None:
    assert even_lines([], 64, 9) == []
    assert even_lines([300, 20, 10], 4096, 330) == [[0, 1, 2]]
    assert even_lines([20, 20, 20], 1, 60) == [[0], [1], [2]]
    assert even_lines([300, 250, 200], 576, 682) == [[0], [1], [2]], "750 tokens on a line would be too many"
    assert even_lines([300, 20, 10], 4096, 100) == [[0], [1, 2]], "but a row alone may be longer"


@pytest.mark.usefixtures("_always")
@pytest.mark.parametrize("family", pico.FAMILIES)
def test_losses_and_gradients_are_those_of_each_pair_alone(family: str) -> None:
    model, pairs = pico.pico(family), _pairs()
    batch = packed_batch(model, pairs, 0)
    assert (batch.tokens_BT.shape[0] < len(pairs)) == can_pack(model) == bool(batch.inputs)
    assert int((batch.labels_BT != IGNORED).sum()) == sum(map(losses.response_tokens, pairs))
    trained = TrainableCompensation(None, SiteBiases(site_linears(model, SITES)))
    task, found = pairs_task(model, Pairs(pairs, pairs, 0)), []
    with attached(model, trained):
        expected = pair_losses(model, pairs, 0).sum()
        for parts in ([list(range(len(pairs)))], [[row] for row in range(len(pairs))]):
            trained.zero_grad()
            total = torch.zeros(())
            for part in parts:
                loss = task.summed_loss(part)
                loss.backward()
                total += loss.detach()
            assert total.item() == pytest.approx(expected.item(), rel=1e-5)
            found.append([part.grad.clone() for part in trained.parameters() if part.grad is not None])
    assert len(found[0]) == len(list(trained.parameters()))
    for together, alone in zip(*found, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("_always")
@pytest.mark.parametrize("family", pico.FAMILIES)
def test_what_enters_the_trained_blocks_is_kept_of_sequences_that_share_lines(family: str) -> None:
    model, pairs = pico.pico(family), _pairs()
    task, rows, calls = pairs_task(model, Pairs(pairs, pairs, 0)), list(range(len(pairs))), []
    first = next(iter(all_blocks(model)))
    own = first.forward
    first.forward = lambda *args, **keywords: calls.append(True) or own(*args, **keywords)
    found = []
    with torch.no_grad():
        whole = task.summed_loss(rows)
        for limit in (1, 2**20):
            calls.clear()
            with kept_below(model, 2, [pair.ids for pair in pairs], "t", limit=limit):
                found += [task.summed_loss(rows), task.summed_loss(rows)]
            assert len(calls) == (2 if limit == 1 else 1) * len(pairs), "each pair passes through it alone"
    torch.testing.assert_close(found[0], whole, rtol=1e-5, atol=1e-5)
    assert len({loss.item() for loss in found}) == 1, "the same bits whatever there is room for"


@pytest.mark.usefixtures("_always")
def test_an_adapter_trains_on_shared_lines_as_on_pairs_alone() -> None:
    adapted, pairs, found = with_adapters(pico.pico(), ("q", "o", "up"), 2), _pairs(), []
    with torch.no_grad():
        for name, part in adapted.named_parameters():
            if "lora_B" in name:
                part.copy_(torch.randn(part.shape, generator=torch.Generator().manual_seed(len(name))))
    task = pairs_task(adapted, Pairs(pairs, pairs, 0))
    for parts in ([list(range(len(pairs)))], [[row] for row in range(len(pairs))]):
        adapted.zero_grad()
        for part in parts:
            task.summed_loss(part).backward()
        found.append([part.grad.clone() for part in adapted.parameters() if part.grad is not None])
    for together, alone in zip(*found, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("_always")
def test_targets_of_the_dense_model_go_to_their_own_tokens() -> None:
    model, pairs = pico.pico(), _pairs()
    targets = dense_targets(pico.pico(seed=1), pairs, 0, top_k=4)
    with torch.no_grad():
        together = distilled_loss(model, pairs, targets, 0, 0.5)
        alone = [distilled_loss(model, [pair], [target], 0, 0.5) for pair, target in zip(pairs, targets, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone).sum())


def test_parts_have_no_more_tokens_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = pico.pico(), [5, 0, 3, 1, 6]
    lengths = list(LENGTHS)
    assert parts_of_batch(model, lengths, rows) == [rows], "few tokens stay as they are"
    monkeypatch.setattr(losses, "enough_tokens", lambda _model: 1)
    assert parts_of_batch(model, lengths, rows) == [rows]
    monkeypatch.setattr(losses, "positions_at_once", lambda *_: 20)
    for some in (rows, [2, 4, 7], list(range(len(lengths)))):
        parts = parts_of_batch(model, lengths, some)
        assert len(parts) > 1 and sorted(row for part in parts for row in part) == sorted(some)
        for part in parts:
            own = [lengths[row] for row in part]
            lines = [[own[number] for number in line] for line in lines_that_pay(model, own)]
            assert len(lines) * max(map(sum, lines)) <= 20
    assert parts_of_batch(model, [21, 2], [0, 1]) == [[0], [1]], "unless one row has more"
