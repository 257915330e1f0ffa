"""Recovered share and its paired interval."""

import numpy as np
import pytest

from restorelcc.core.errors import BadInput
from restorelcc.evaluate.statistics import correct_by_task, recovered_share


def _model(accuracy: float, seed: int, base: dict | None = None) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    if base is None:
        return {task: (generator.random(400) < accuracy).astype(float) for task in "abcd"}
    # Differ from the base on some items only, as a restored model does from its pruned one.
    return {task: np.where(generator.random(400) < accuracy, 1.0, items) for task, items in base.items()}


def test_the_share_is_gained_over_lost_of_the_task_means() -> None:
    dense, pruned = {"a": np.ones(10), "b": np.ones(40)}, {"a": np.zeros(10), "b": np.ones(40)}
    restored = {"a": np.array([1.0] * 5 + [0.0] * 5), "b": np.ones(40)}
    share = recovered_share(dense, pruned, restored, samples=500, seed=0)
    assert share["mean"] == pytest.approx(0.5)
    assert share["lost"] == pytest.approx(0.5)
    assert share["ci95"][0] < 0.5 < share["ci95"][1]
    assert share["method"] == "paired bootstrap"


def test_a_planted_gain_is_found_and_no_gain_is_not() -> None:
    dense, pruned = _model(0.95, 0), _model(0.6, 1)
    gained = recovered_share(dense, pruned, _model(0.4, 2, pruned), samples=2000, seed=0)
    assert gained["ci95"][0] > 0.2
    flips = np.random.default_rng(3)
    noise = {task: np.abs(items - (flips.random(400) < 0.1)) for task, items in pruned.items()}
    # Flipping a tenth of the items in both directions loses on average (0.6 - 0.4) * 0.1.
    assert recovered_share(dense, pruned, noise, samples=2000, seed=0)["ci95"][0] < 0


def test_identical_models_recover_exactly_nothing_and_everything() -> None:
    dense, pruned = _model(0.95, 0), _model(0.6, 1)
    assert recovered_share(dense, pruned, pruned, samples=200, seed=0)["ci95"] == [0.0, 0.0]
    assert recovered_share(dense, pruned, dense, samples=200, seed=0)["ci95"] == pytest.approx([1.0, 1.0])


def test_the_interval_is_reproducible() -> None:
    models = [_model(0.95, 0), _model(0.6, 1), _model(0.7, 2)]
    assert recovered_share(*models, samples=300, seed=7) == recovered_share(*models, samples=300, seed=7)
    assert recovered_share(*models, samples=300, seed=7) != recovered_share(*models, samples=300, seed=8)


def test_without_a_loss_there_is_no_share() -> None:
    model = _model(0.7, 1)
    share = recovered_share(model, model, model, samples=200, seed=0)
    assert (share["mean"], share["ci95"], share["reason"]) == (None, None, "pruning lost nothing")


def test_a_loss_not_clear_of_zero_bounds_nothing() -> None:
    dense, pruned = _model(0.601, 0), _model(0.6, 1)
    if sum(map(np.sum, dense.values())) <= sum(map(np.sum, pruned.values())):
        dense, pruned = pruned, dense
    assert recovered_share(dense, pruned, dense, samples=500, seed=0)["ci95"] == [None, None]


def test_models_measured_on_different_items_are_refused() -> None:
    with pytest.raises(BadInput, match="different items"):
        recovered_share({"a": np.ones(3)}, {"a": np.ones(4)}, {"a": np.ones(3)}, samples=100, seed=0)


def test_rows_are_ordered_by_item() -> None:
    rows = [{"task": "t", "item_id": i, "correct": c} for i, c in ((2, True), (0, False), (1, True))]
    assert correct_by_task(rows)["t"].tolist() == [0.0, 1.0, 1.0]
