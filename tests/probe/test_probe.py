"""The probe finds a planted informative head, at its own place."""

import torch

from restorelcc.core.heads import HeadLayout
from restorelcc.probe.config import ProbeConfig
from restorelcc.probe.contrastive import heldout_mask, probe_heads
from restorelcc.probe.ranking import rank_heads
from restorelcc.probe.stage import head_rows

LAYERS, HEADS, HEAD_DIM, SAMPLES = 3, 8, 5, 200


def _scores(planted: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Random activations in which the answer's side shows in one head only."""
    generator = torch.Generator().manual_seed(0)
    mask = heldout_mask(SAMPLES, 0.3, seed=1)
    accuracy, log_loss = [], []
    for layer in range(LAYERS):
        question, positive, negative = (torch.randn(SAMPLES, HEADS, HEAD_DIM, generator=generator) for _ in range(3))
        if layer == planted[0]:
            positive[:, planted[1]] += 2.0
        scores = probe_heads(question, positive, negative, mask, steps=200, learning_rate=0.01)
        accuracy.append(scores.accuracy_H)
        log_loss.append(scores.log_loss_H)
    return torch.stack(accuracy), torch.stack(log_loss)


def test_a_planted_head_comes_back_as_itself() -> None:
    accuracy_LH, log_loss_LH = _scores((1, 6))
    assert rank_heads(accuracy_LH, log_loss_LH)[1, 6] == 0
    rest = accuracy_LH.flatten()[[i for i in range(LAYERS * HEADS) if i != 1 * HEADS + 6]]
    assert accuracy_LH[1, 6] > 0.95
    assert rest.mean() < 0.6
    rows = head_rows(
        HeadLayout(LAYERS, HEADS, HEAD_DIM),
        {"accuracy": accuracy_LH, "log_loss": log_loss_LH, "energy": torch.zeros_like(accuracy_LH)},
        ProbeConfig(),
    )
    assert (rows[0]["layer"], rows[0]["head"], rows[0]["rank"]) == (1, 6, 0)
    assert [row["rank"] for row in rows] == list(range(LAYERS * HEADS))


def test_heads_are_probed_independently() -> None:
    generator = torch.Generator().manual_seed(3)
    question, positive, negative = (torch.randn(40, HEADS, HEAD_DIM, generator=generator) for _ in range(3))
    mask = heldout_mask(40, 0.3, seed=1)
    together = probe_heads(question, positive, negative, mask, steps=50, learning_rate=0.01)
    for head in (0, 5):
        one = [part[:, head : head + 1] for part in (question, positive, negative)]
        alone = probe_heads(*one, mask, steps=50, learning_rate=0.01)
        torch.testing.assert_close(alone.log_loss_H[0], together.log_loss_H[head], atol=1e-6, rtol=1e-6)


def test_the_recipe_equals_one_linear_layer_with_adam() -> None:
    generator = torch.Generator().manual_seed(4)
    question, positive, negative = (torch.randn(60, 1, HEAD_DIM, generator=generator) for _ in range(3))
    mask = heldout_mask(60, 0.3, seed=2)
    ours = probe_heads(question, positive, negative, mask, steps=200, learning_rate=0.01)
    linear = torch.nn.Linear(2 * HEAD_DIM, 1)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    x = torch.cat([torch.cat([question, side], dim=-1)[~mask, 0] for side in (positive, negative)])
    y = torch.cat([torch.ones(len(x) // 2), torch.zeros(len(x) // 2)])
    optimizer = torch.optim.Adam(linear.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(linear(x)[:, 0], y).backward()
        optimizer.step()
    with torch.no_grad():
        held = [
            torch.sigmoid(linear(torch.cat([question, side], dim=-1)[mask, 0]))[:, 0] for side in (positive, negative)
        ]
    accuracy = torch.cat([held[0] > 0.5, held[1] <= 0.5]).double().mean()
    log_loss = -torch.cat([held[0].log(), (1 - held[1]).log()]).double().mean()
    assert ours.accuracy_H[0] == accuracy
    torch.testing.assert_close(ours.log_loss_H[0], log_loss, atol=1e-5, rtol=1e-5)


def test_pairs_are_held_out_whole_and_in_the_asked_share() -> None:
    mask = heldout_mask(100, 0.3, seed=0)
    assert mask.shape == (100,)
    assert int(mask.sum()) == 30
    assert torch.equal(mask, heldout_mask(100, 0.3, seed=0))
    assert not torch.equal(mask, heldout_mask(100, 0.3, seed=1))
    assert int(heldout_mask(2, 0.9, seed=0).sum()) == 1


def test_ties_go_to_the_lower_log_loss_then_to_the_lower_index() -> None:
    score = torch.tensor([[0.5, 0.9], [0.9, 0.9]])
    log_loss = torch.tensor([[0.1, 0.3], [0.2, 0.3]])
    assert rank_heads(score, log_loss).tolist() == [[3, 1], [0, 2]]
