"""The probes find what was planted, at its own place, and miss what they cannot see."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import spearmanr
from torch.nn.functional import softplus

from restorelcc.models.heads import HeadLayout
from restorelcc.stages.probe.contrastive import (
    Solver,
    energy_scores,
    fit_adam,
    heldout_mask,
    kl_scores,
    mse_scores,
    probe_heads,
    rank_heads,
)
from restorelcc.stages.probe.newton import _FLOOR, RIDGE, PairProbe, fit_pairs
from restorelcc.stages.probe.relational import relational_scores
from restorelcc.stages.probe.stage import head_rows, layer_groups

LAYERS, HEADS, HEAD_DIM, SAMPLES = 3, 8, 5, 200
SOLVERS: tuple[Solver, ...] = ("newton", "adam")


def _random(samples: int, heads: int, dim: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(samples, heads, dim, generator=generator) for _ in range(3))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("planted", [(1, 6), (2, 1), (0, 7)])
def test_a_planted_head_comes_back_as_itself(solver: Solver, planted: tuple[int, int]) -> None:
    """Random activations in which the answer's side shows in one head only; L=3, H=8."""
    mask = heldout_mask(SAMPLES, 0.3, seed=1)
    found = []
    for layer in range(LAYERS):
        question, positive, negative = _random(SAMPLES, HEADS, HEAD_DIM, layer)
        if layer == planted[0]:
            positive[:, planted[1]] += 2.0
        found.append(probe_heads(question, positive, negative, mask, solver=solver))
    accuracy_LH = torch.stack([scores.accuracy_H for scores in found])
    columns = {"paper": accuracy_LH, "log_loss": torch.stack([scores.log_loss_H for scores in found])}
    rows = head_rows(HeadLayout(LAYERS, HEADS, HEAD_DIM), columns, "paper")
    assert (rows[0]["layer"], rows[0]["head"], rows[0]["rank"]) == (*planted, 0)
    assert [row["rank"] for row in rows] == list(range(LAYERS * HEADS))
    assert rows[0]["score"] == rows[0]["paper"] > 0.9
    assert sum(row["paper"] for row in rows[1:]) / (LAYERS * HEADS - 1) < 0.6


@pytest.mark.parametrize("dim", [5, 32])
def test_a_relation_is_found_by_the_bilinear_probe_and_missed_by_the_linear_one(dim: int) -> None:
    """In head 3 the true answer's activation is a rotation of the question's, the wrong one's of another question's:
    either side alone looks the same."""
    question, positive, negative = _random(400, HEADS, dim, seed=5)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(6))).Q
    positive[:, 3] = question[:, 3] @ rotation + 0.3 * positive[:, 3]
    negative[:, 3] = question[:, 3].roll(7, dims=0) @ rotation + 0.3 * negative[:, 3]
    mask = heldout_mask(400, 0.3, seed=1)
    relational_H = relational_scores(question, positive, negative, mask)
    assert relational_H.argmax() == 3
    assert relational_H[3] > 0.9
    assert relational_H[[h for h in range(HEADS) if h != 3]].max() < 0.65
    for solver in SOLVERS:
        assert probe_heads(question, positive, negative, mask, solver=solver).accuracy_H[3] < 0.6


def test_the_bilinear_probe_is_a_ridge_over_all_products() -> None:
    """Written out: one weight for each product of [1 ; q] and d, in NumPy, and not in its dual."""
    question, positive, negative = _random(40, HEADS, HEAD_DIM, seed=14)
    positive += 0.4 * question.roll(1, dims=2) + 0.1
    mask = heldout_mask(40, 0.3, seed=1)
    test_N = mask.numpy()
    shares = []
    for head in range(HEADS):
        q, p, n = (part[:, head].double().numpy() for part in (question, positive, negative))
        q = (q - q[~test_N].mean(0)) / q[~test_N].std(0)
        d = (p - n) / np.concatenate([p[~test_N], n[~test_N]]).std(0)
        asked = np.concatenate([np.ones((40, 1)), q / HEAD_DIM**0.5], axis=1)
        products = np.stack([np.kron(one, other / HEAD_DIM**0.5) for one, other in zip(asked, d, strict=True)])
        x, held_out = products[~test_N], products[test_N]
        ridge = (x**2).sum(1).mean() * np.eye(x.shape[1])
        weights = np.linalg.solve(x.T @ x + ridge, x.sum(0))  # every target is 1
        shares.append((held_out @ weights > 0).mean())
    assert relational_scores(question, positive, negative, mask).tolist() == pytest.approx(shares)
    assert len(set(shares)) > 3 and max(shares) > 0.6


def test_heads_are_probed_independently() -> None:
    parts = _random(40, HEADS, HEAD_DIM, seed=3)
    mask = heldout_mask(40, 0.3, seed=1)
    for solver in SOLVERS:
        together = probe_heads(*parts, mask, steps=50, solver=solver)
        for head in (0, 5):
            alone = probe_heads(*(part[:, head : head + 1] for part in parts), mask, steps=50, solver=solver)
            torch.testing.assert_close(alone.log_loss_H[0], together.log_loss_H[head], atol=1e-3, rtol=1e-3)
    bilinear_H = relational_scores(*parts, mask)
    assert relational_scores(*(part[:, 5:6] for part in parts), mask)[0] == bilinear_H[5]


def test_the_recipe_equals_one_linear_layer_with_adam() -> None:
    question, positive, negative = _random(60, 1, HEAD_DIM, seed=4)
    mask = heldout_mask(60, 0.3, seed=2)
    ours = probe_heads(question, positive, negative, mask, steps=200, learning_rate=0.01, solver="adam")
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
    torch.testing.assert_close(ours.accuracy_H[0], accuracy)
    torch.testing.assert_close(ours.log_loss_H[0], log_loss, atol=1e-5, rtol=1e-5)


def test_newton_ends_where_a_general_optimizer_ends() -> None:
    """The penalized log-loss in SciPy's L-BFGS, on inputs of very different size, one head separable."""
    generator = torch.Generator().manual_seed(8)
    scale = torch.tensor([0.01, 1.0, 30.0])
    parts = [5 + scale * torch.randn(3, 50, 3, generator=generator) for _ in range(3)]
    parts[1][2] += 4 * scale
    probe = fit_pairs(*parts)
    for head in range(3):
        q, p, n = (part[head].double() for part in parts)
        x = torch.cat([torch.cat([q, p], 1), torch.cat([q, n], 1)])
        y = torch.cat([torch.ones(50), -torch.ones(50)]).double()
        slope = (p.mean(0) - n.mean(0)).abs() / 4
        ridge = torch.cat([torch.full((3,), _FLOOR), RIDGE * slope + _FLOOR]).double()

        def loss(w: object, x: torch.Tensor = x, y: torch.Tensor = y, ridge: torch.Tensor = ridge) -> float:
            weights = torch.as_tensor(w, dtype=torch.float64)
            logit = x @ weights[:-1] + weights[-1]
            penalty = (ridge * weights[:-1] ** 2).sum() / 2
            return float(torch.nn.functional.softplus(-y * logit).mean() + penalty)

        ours = [*probe.question_HD[head].tolist(), *probe.answer_HD[head].tolist(), float(probe.bias_H[head])]
        best = minimize(loss, ours, method="BFGS", options={"gtol": 1e-9}).fun
        assert loss(ours) <= best + 1e-4
        assert loss([0.0] * 7) > best + 0.005


def test_newton_ranks_like_the_literal_recipe() -> None:
    question, positive, negative = _random(400, 64, 24, seed=9)
    strength = torch.linspace(0, 3, 64)[torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    direction_HD = torch.nn.functional.normalize(_random(1, 64, 24, seed=10)[0][0], dim=-1)
    positive += strength[:, None] * direction_HD
    mask = heldout_mask(400, 0.3, seed=1)
    newton, adam = (probe_heads(question, positive, negative, mask, solver=solver) for solver in SOLVERS)
    assert spearmanr(newton.accuracy_H, adam.accuracy_H)[0] > 0.99
    assert spearmanr(newton.log_loss_H, adam.log_loss_H)[0] > 0.99


def test_auto_is_the_recipe_for_small_heads_and_newton_for_large_ones() -> None:
    for dim, expected in ((8, "adam"), (24, "newton")):
        parts = _random(60, 2, dim, seed=dim)
        mask = heldout_mask(60, 0.3, seed=2)
        chosen = probe_heads(*parts, mask, solver="auto").log_loss_H
        others = {solver: probe_heads(*parts, mask, solver=solver).log_loss_H for solver in SOLVERS}
        assert torch.equal(chosen, others[expected])  # type: ignore[index]
        assert not torch.equal(others["adam"], others["newton"])


def test_inputs_that_do_not_vary_do_no_harm() -> None:
    question, positive, negative = _random(50, 2, 24, seed=11)
    question[:, 0] = 3.0
    positive[:, 1], negative[:, 1] = 1.0, 1.0
    mask = heldout_mask(50, 0.3, seed=2)
    for solver in SOLVERS:
        scores = probe_heads(question, positive, negative, mask, solver=solver)
        assert scores.log_loss_H.isfinite().all()
        assert scores.accuracy_H[1] == 0.5
    assert relational_scores(question, positive, negative, mask)[1] == 0.5


def test_the_written_out_recipe_is_autograd_with_torchs_adam() -> None:
    q, p, n = (part.transpose(0, 1).contiguous() for part in _random(300, 8, 8, seed=5))
    w, v, b = (torch.zeros(shape, requires_grad=True) for shape in ((8, 8), (8, 8), (8,)))
    optimizer = torch.optim.Adam([w, v, b], lr=0.01)
    for _ in range(50):
        optimizer.zero_grad()
        z_p, z_n = PairProbe(w, v, b).logits_HN(q, p), PairProbe(w, v, b).logits_HN(q, n)
        ((softplus(-z_p) + softplus(z_n)).mean(dim=1) / 2).sum().backward()
        optimizer.step()
    ours = fit_adam(q, p, n, steps=50, learning_rate=0.01)
    for written, found in ((ours.question_HD, w), (ours.answer_HD, v), (ours.bias_H, b)):
        torch.testing.assert_close(written, found.detach(), rtol=0, atol=1e-6)


def test_divergences_equal_their_formulas() -> None:
    dense, pruned, _ = _random(20, 2, 3, seed=12)
    torch.testing.assert_close(mse_scores(dense, pruned)[1], (dense - pruned)[:, 1].double().pow(2).mean())
    p, q = dense[:, 1].double().softmax(-1), pruned[:, 1].double().softmax(-1)
    torch.testing.assert_close(kl_scores(dense, pruned)[1], (p * (p / q).log()).sum(-1).mean())
    assert energy_scores(torch.tensor([[3.0, 4.0, 5.0]]), 2).tolist() == [25.0]


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


def test_small_layers_are_scored_together_and_a_large_one_by_itself() -> None:
    assert layer_groups(layers=5, width=64) == [[0, 1, 2, 3, 4]]
    assert layer_groups(layers=5, width=512) == [[0, 1], [2, 3], [4]]
    assert layer_groups(layers=3, width=4096) == [[0], [1], [2]]


def test_the_literal_recipe_scores_heads_together_as_it_scores_them_apart() -> None:
    mask = heldout_mask(SAMPLES, 0.3, seed=1)
    layers = [_random(SAMPLES, HEADS, HEAD_DIM, seed) for seed in range(LAYERS)]
    apart = [probe_heads(*layer, mask, solver="adam") for layer in layers]
    together = probe_heads(*(torch.cat(parts, dim=1) for parts in zip(*layers, strict=True)), mask, solver="adam")
    assert torch.equal(together.accuracy_H, torch.cat([each.accuracy_H for each in apart]))
    torch.testing.assert_close(together.log_loss_H, torch.cat([each.log_loss_H for each in apart]), rtol=1e-5, atol=0)
