"""A dense model that cannot be right is caught, with numbers; a weak or a small test is not."""

import numpy as np

from restorelcc.stages.evaluate.sanity import accuracy_against_chance, complaint


def _rows(accuracy: float, items: int, choices: int = 4) -> list[dict]:
    drawn = np.random.default_rng(0).random(items) < accuracy
    likelihoods = [0.0] * choices
    return [{"task": f"t{n % 2}", "score": float(hit), "log_likelihoods": likelihoods} for n, hit in enumerate(drawn)]


def test_a_model_at_chance_is_caught_with_its_numbers() -> None:
    found = complaint(_rows(0.25, 2000), 5.0, 1000)
    assert found is not None
    assert "over 2,000 items, and guessing gives 25.0%" in found


def test_a_model_clearly_above_chance_passes() -> None:
    assert complaint(_rows(0.35, 2000), 5.0, 1000) is None


def test_too_few_items_prove_nothing() -> None:
    assert complaint(_rows(0.25, 60), 5.0, 1000) is None


def test_absurd_perplexity_is_caught_without_any_task() -> None:
    assert "1,024.0, and guessing among the 1,000 tokens" in (complaint([], 1024.0, 1000) or "")
    assert "beyond all bounds" in (complaint([], None, 1000) or "")
    assert complaint([], 400.0, 1000) is None


def test_chance_follows_the_number_of_choices() -> None:
    found = accuracy_against_chance([*_rows(0.5, 100, 2), {"task": "gen", "score": 1.0, "log_likelihoods": []}])
    assert found is not None
    assert found[1] == 0.5
    assert found[3] == 100
