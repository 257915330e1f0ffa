"""Recovered share, paired bootstrap and McNemar's test: against hand computations, and calibrated by simulation."""

import numpy as np
import pytest
from scipy.stats import binomtest

from restorelcc.base.errors import BadInput
from restorelcc.stages.evaluate.statistics import (
    check_same_items,
    compare,
    compare_ratios,
    compare_runs,
    compare_texts,
    mcnemar,
    mid_p,
    recovered_share,
    scores_by_task,
)


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
    assert (share["method"], share["seeds"]) == ("paired bootstrap", 1)


def test_a_planted_gain_is_found_and_no_gain_is_not() -> None:
    dense, pruned = _model(0.95, 0), _model(0.6, 1)
    gained = recovered_share(dense, pruned, _model(0.4, 2, pruned), samples=2000, seed=0)
    assert gained["ci95"][0] > 0.2
    flips = np.random.default_rng(3)
    noise = {task: np.abs(items - (flips.random(400) < 0.1)) for task, items in pruned.items()}
    # Flipping a tenth of the items in both directions loses on average (0.6 - 0.4) * 0.1.
    assert recovered_share(dense, pruned, noise, samples=2000, seed=0)["ci95"][0] < 0


def test_equal_means_in_another_order_are_no_loss() -> None:
    """np.mean([.1, .2, .3]) - np.mean([.3, .2, .1]) is 5.6e-17: a share of it would be 1e16."""
    tasks = {right: np.array([1.0] * right + [0.0] * (10 - right)) for right in (1, 2, 3)}
    dense, pruned = ({"a": tasks[a], "b": tasks[2], "c": tasks[b]} for a, b in ((1, 3), (3, 1)))
    assert np.mean([0.1, 0.2, 0.3]) != np.mean([0.3, 0.2, 0.1])
    everything = {task: np.ones(10) for task in "abc"}
    for one, other in ((dense, pruned), (pruned, dense)):
        found = recovered_share(one, other, everything, samples=500, seed=0)
        assert (found["mean"], found["ci95"], found["reason"]) == (None, None, "pruning lost nothing")
    better = dense | {"a": tasks[2]}
    drawn = recovered_share(better, pruned, everything, samples=500, seed=0)
    assert drawn["mean"] == pytest.approx((1 - 0.2) / (0.7 / 3 - 0.2))
    assert drawn["ci95"] == [None, None], "in far more than a fortieth of the draws nothing is lost"


def test_drawing_outcomes_is_drawing_items() -> None:
    """The interval equals that of a bootstrap over items, drawn one by one."""
    dense, pruned, restored = _model(0.95, 0), _model(0.6, 1), _model(0.3, 2, _model(0.6, 1))
    found = recovered_share(dense, pruned, restored, samples=20_000, seed=0)["ci95"]
    generator, means = np.random.default_rng(1), np.zeros((3, 4000))
    for task in "abcd":
        drawn = generator.integers(0, 400, (4000, 400))
        means += np.stack([model[task][drawn].mean(axis=1) for model in (dense, pruned, restored)]) / 4
    expected = np.quantile((means[2] - means[1]) / (means[0] - means[1]), [0.025, 0.975])
    assert found == pytest.approx(expected.tolist(), abs=0.006)


def test_identical_models_recover_exactly_nothing_and_everything() -> None:
    dense, pruned = _model(0.95, 0), _model(0.6, 1)
    assert recovered_share(dense, pruned, pruned, samples=200, seed=0)["ci95"] == [0.0, 0.0]
    assert recovered_share(dense, pruned, dense, samples=200, seed=0)["ci95"] == pytest.approx([1.0, 1.0])


def test_the_interval_is_reproducible() -> None:
    models = [_model(0.95, 0), _model(0.6, 1), _model(0.7, 2)]
    assert recovered_share(*models, samples=300, seed=7) == recovered_share(*models, samples=300, seed=7)
    assert recovered_share(*models, samples=300, seed=7) != recovered_share(*models, samples=300, seed=8)


def test_several_seeds_are_averaged_and_their_spread_widens_the_interval() -> None:
    dense, pruned = _model(0.95, 0), _model(0.6, 1)
    even = [_model(0.4, seed, pruned) for seed in (2, 3, 4)]
    spread = [_model(accuracy, seed, pruned) for accuracy, seed in ((0.1, 2), (0.4, 3), (0.7, 4))]
    apart = recovered_share(dense, pruned, spread, samples=3000, seed=0)
    together = recovered_share(dense, pruned, even, samples=3000, seed=0)
    shares = [recovered_share(dense, pruned, one, samples=200, seed=0)["mean"] for one in spread]
    assert apart["mean"] == pytest.approx(np.mean(shares))
    assert (apart["seeds"], together["seeds"]) == (3, 3)
    assert np.diff(apart["ci95"]) > 3 * np.diff(together["ci95"])


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


def _rows(digests: dict[str, str]) -> list[dict]:
    return [{"task": task, "item_id": n, "digest": d} for task, text in digests.items() for n, d in enumerate(text)]


def test_other_items_are_named_by_task_and_count() -> None:
    check_same_items("restored", _rows({"a": "xyz"}), "dense", _rows({"a": "xyz"}))
    with pytest.raises(BadInput, match=r"restored and dense answered different items of task 'b' \(3 and 3 items, 2 "):
        check_same_items("restored", _rows({"a": "xyz", "b": "uvw"}), "dense", _rows({"a": "xyz", "b": "uvq"}))
    with pytest.raises(BadInput, match="dense was measured on task 'b', restored was not"):
        check_same_items("restored", _rows({"a": "xyz"}), "dense", _rows({"a": "xyz", "b": "x"}))


def test_scores_are_ordered_by_item() -> None:
    rows = [{"task": "t", "item_id": i, "score": c} for i, c in ((2, 1.0), (0, 0.0), (1, 0.5))]
    assert scores_by_task(rows, ["t"])["t"].tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(("won", "lost"), [(5, 1), (1, 5), (12, 30), (40, 39)])
def test_mid_p_is_the_exact_p_less_half_of_the_observed_probability(won: int, lost: int) -> None:
    exact = binomtest(min(won, lost), won + lost, 0.5).pvalue
    observed = binomtest(min(won, lost), won + lost, 0.5, alternative="less").pvalue
    below = binomtest(min(won, lost) - 1, won + lost, 0.5, alternative="less").pvalue if min(won, lost) else 0.0
    assert mid_p(won, lost) == pytest.approx(exact - (observed - below))


def test_mcnemar_counts_what_only_one_model_answered() -> None:
    first, second = np.array([1, 1, 0, 0, 1.0]), np.array([1, 0, 1, 1, 1.0])
    assert mcnemar(first, second) == {"won": 2, "lost": 1, "p": mid_p(2, 1)}
    assert mcnemar(first, first)["p"] == 1.0


def test_compare_pools_tasks_as_strata() -> None:
    first = {"a": np.zeros(10), "b": np.ones(40)}
    second = {"a": np.array([1.0] * 5 + [0.0] * 5), "b": np.array([0.0] * 4 + [1.0] * 36)}
    found = compare(first, second, samples=4000, seed=0)
    assert found["tasks"]["a"]["difference"] == pytest.approx(0.5)
    assert found["tasks"]["b"]["difference"] == pytest.approx(-0.1)
    assert found["pooled"]["difference"] == pytest.approx(0.2), "mean over tasks, whatever their size"
    assert (found["pooled"]["won"], found["pooled"]["lost"], found["pooled"]["n"]) == (5, 4, 50)
    # Standard error of a mean of task means: sqrt(var_a / 10 + var_b / 40) / 2.
    half_width = 1.96 * np.sqrt(0.25 / 10 + 0.09 / 40) / 2
    assert np.diff(found["pooled"]["ci95"])[0] == pytest.approx(2 * half_width, rel=0.15)


def test_scores_between_zero_and_one_have_an_interval_but_no_mcnemar() -> None:
    generator = np.random.default_rng(0)
    found = compare({"a": generator.random(200)}, {"a": generator.random(200) + 0.5}, samples=1000, seed=0)
    assert found["pooled"]["p"] is None
    assert found["pooled"]["ci95"][0] > 0.3


@pytest.mark.parametrize("items", [{"a": 1}, {"a": 1, "b": 30}])
def test_a_task_of_one_item_gives_no_interval(items: dict[str, int]) -> None:
    """Every draw of one item is that item: an interval of width zero would call any difference beyond chance."""
    worse, better = ({task: np.full(count, score) for task, count in items.items()} for score in (0.0, 1.0))
    found = compare(worse, better, samples=200, seed=0)
    assert (found["pooled"]["difference"], found["pooled"]["ci95"]) == (1.0, None)
    assert found["tasks"]["a"]["ci95"] is None
    if "b" in items:
        assert found["tasks"]["b"]["ci95"] == [1.0, 1.0]
    share = recovered_share(better, worse, better, samples=200, seed=0)
    assert (share["mean"], share["ci95"]) == (1.0, None)
    one = [(np.array([-1.0]), np.ones(1)), (np.array([-2.0]), np.ones(1))]
    found = compare_ratios(one[:1], one[1:], "perplexity", samples=200, seed=0)
    assert (found["difference"], found["ci95"]) == (pytest.approx(np.exp(2) - np.exp(1)), None)


def _simulated(repetitions: int, gain: float, seed: int) -> tuple[float, float]:
    """Share of simulated pairs of models that bootstrap and McNemar call different, at the 5 % level.

    Two tasks of 200 items; both models are right on an item with the same probability, drawn anew for each item, and
    the second is lifted to certainty on a share `gain` of the items.
    """
    generator = np.random.default_rng(seed)
    by_interval = by_test = 0
    for _ in range(repetitions):
        easy = {task: generator.beta(2, 1, 200) for task in "ab"}
        first = {task: (generator.random(200) < p).astype(float) for task, p in easy.items()}
        lifted = {task: np.where(generator.random(200) < gain, 1.0, p) for task, p in easy.items()}
        second = {task: (generator.random(200) < p).astype(float) for task, p in lifted.items()}
        pooled = compare(first, second, samples=400, seed=int(generator.integers(2**31)))["pooled"]
        low, high = pooled["ci95"]
        by_interval += low > 0 or high < 0
        by_test += pooled["p"] < 0.05
    return by_interval / repetitions, by_test / repetitions


def test_a_null_difference_is_found_in_five_of_a_hundred_repetitions() -> None:
    by_interval, by_test = _simulated(1000, 0.0, seed=1)
    assert 0.03 <= by_interval <= 0.07
    assert 0.03 <= by_test <= 0.07


def test_a_planted_difference_is_found() -> None:
    by_interval, by_test = _simulated(100, 0.4, seed=2)
    assert min(by_interval, by_test) >= 0.95


@pytest.mark.filterwarnings("error")
def test_a_perplexity_beyond_all_numbers_has_no_difference() -> None:
    """exp(800) overflows; exp(600) does not, but of some draws exp(sum / weight) may."""
    weight, low, high = np.ones(10), np.full(10, -2.0), np.full(10, -800.0)
    nothing = {"difference": None, "ci95": None, "n": 10, "won": None, "lost": None, "p": None}
    found = compare_ratios([(low, weight)], [(high, weight)], "weighted_perplexity", samples=200, seed=0)
    assert found == {"first": pytest.approx(np.exp(2)), "second": None} | nothing
    found = compare_ratios([(high, weight)], [(high, weight)], "weighted_perplexity", samples=200, seed=0)
    assert found == {"first": None, "second": None} | nothing
    uneven = np.array([-200.0, -1000.0] * 5)
    found = compare_ratios([(low, weight)], [(uneven, weight)], "perplexity", samples=200, seed=0)
    assert found["difference"] == pytest.approx(np.exp(600)) and found["ci95"] is None
    bits = compare_ratios([(low, weight)], [(high, weight)], "bits_per_byte", samples=200, seed=0)
    assert bits["ci95"] == pytest.approx([798 / np.log(2)] * 2)


def _texts(log_likelihoods: list[float], tokens: list[int]) -> list[dict]:
    return [
        {"text_id": number, "digest": f"d{number}", "tokens": count, "log_likelihood": value}
        for number, (value, count) in enumerate(zip(log_likelihoods, tokens, strict=True))
    ]


def test_the_loss_of_texts_is_a_token_each_and_drawn_by_text() -> None:
    """The interval equals that of a bootstrap over texts, drawn one by one."""
    tokens = [10, 20, 30, 40] * 5
    generator = np.random.default_rng(0)
    first, second = (-np.array(tokens) * generator.uniform(low, 5, 20) for low in (4, 3))
    one, two = _texts(first.tolist(), tokens), _texts(second.tolist(), tokens)
    found = compare_texts([one], [two], samples=20_000, seed=0)
    assert found["first"] == pytest.approx(-first.sum() / 500)
    assert found["difference"] == pytest.approx((first - second).sum() / 500)
    drawn = generator.integers(0, 20, (20_000, 20))
    shares = (first - second)[drawn].sum(axis=1) / np.array(tokens)[drawn].sum(axis=1)
    assert found["ci95"] == pytest.approx(np.quantile(shares, [0.025, 0.975]).tolist(), abs=0.01)
    same = compare_texts([one], [one], samples=200, seed=0)
    assert (same["difference"], same["ci95"]) == (0.0, [0.0, 0.0])


def test_seeds_of_texts_are_averaged() -> None:
    low, high = _texts([-10.0, -20.0], [10, 10]), _texts([-30.0, -40.0], [10, 10])
    found = compare_texts([low], [low, high], samples=200, seed=0)
    assert (found["first"], found["second"], found["difference"]) == pytest.approx((1.5, 2.5, 1.0))


def test_one_text_has_no_interval_and_a_loss_that_is_no_number_no_difference() -> None:
    one, two = _texts([-10.0], [10]), _texts([-12.0], [10])
    assert compare_texts([one], [two], samples=200, seed=0) == {
        "first": 1.0, "second": 1.2, "difference": pytest.approx(0.2), "ci95": None, "n": 1
    }  # fmt: skip
    broken = _texts([float("nan"), -1.0], [10, 10])
    found = compare_texts([_texts([-10.0, -1.0], [10, 10])], [broken], samples=200, seed=0)
    assert (found["difference"], found["ci95"]) == (None, None)


def test_other_texts_are_refused() -> None:
    with pytest.raises(BadInput, match="different held-out texts"):
        compare_texts([_texts([-1.0], [10])], [_texts([-1.0], [11])], samples=200, seed=0)


@pytest.mark.parametrize("runs", [2, 3])
def test_equal_models_of_few_seeds_differ_beyond_chance_in_few_comparisons(runs: int) -> None:
    """5 % are asked for; seeds spread by 0.05, many times what the items do."""
    generator = np.random.default_rng(0)

    def model(skill: float) -> dict[str, np.ndarray]:
        return {"a": (generator.random(500) < skill).astype(float)}

    found = 0
    for _ in range(300):
        first, second = ([model(skill) for skill in generator.normal(0.6, 0.05, runs)] for _ in range(2))
        low, high = compare_runs(first, second, samples=400, seed=0)["pooled"]["ci95"]
        found += low > 0 or high < 0
    assert found <= 0.07 * 300


def test_three_seeds_that_agree_tell_what_is_there() -> None:
    base = [_model(0.0, seed, _model(0.6, 1)) for seed in (2, 3, 4)]
    better = [_model(0.3, seed, _model(0.6, 1)) for seed in (2, 3, 4)]
    found = compare_runs(base, better, samples=2000, seed=0)["pooled"]
    assert found["ci95"][0] > 0.05
