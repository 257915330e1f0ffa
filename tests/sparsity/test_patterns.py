"""Masks have exactly the zeros asked for, and the same ones every time."""

import pytest
import torch

from restorelcc.base.errors import BadInput
from restorelcc.base.prunings import Sparsity, parse_pruning
from restorelcc.sparsity.patterns import lowest, pruned_count, removal_mask, rounded, without_chance_zeros
from tests.zeros import holds_pattern


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.66, 0.99])
def test_a_fraction_removes_the_same_count_from_every_row(fraction: float) -> None:
    mask = removal_mask(torch.rand(7, 30), Sparsity(fraction))
    assert mask.sum(dim=1).tolist() == [int(30 * fraction)] * 7


def test_a_fraction_is_the_decimal_that_it_is_written_as() -> None:
    """In binary, 0.29 * 1600 is 463.99..."""
    for name, inputs, zeros in (("0.29", 1600, 464), ("0.57", 1600, 912), ("0.58", 1600, 928), ("0.5", 7, 3)):
        assert pruned_count(inputs, parse_pruning(f"wanda-{name}").sparsity) == zeros


@pytest.mark.parametrize(("keep", "group"), [(2, 4), (1, 4), (4, 8)])
def test_n_of_m_keeps_n_of_every_m(keep: int, group: int) -> None:
    weight = torch.randn(5, 32)
    pruned = weight.masked_fill(removal_mask(weight.abs(), Sparsity(1 - keep / group, keep, group)), 0)
    assert (pruned.reshape(-1, group) != 0).sum(dim=1).tolist() == [keep] * (5 * 32 // group)
    assert holds_pattern(pruned, keep, group)
    assert not holds_pattern(weight, keep, group)


def test_1of4_is_one_kept_not_one_removed() -> None:
    mask = removal_mask(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), parse_pruning("wanda-1of4").sparsity)
    assert mask.tolist() == [[False, True, True, True]]


def test_of_equal_scores_the_first_goes() -> None:
    assert removal_mask(torch.ones(1, 4), Sparsity(0.5)).tolist() == [[True, True, False, False]]


def test_a_pattern_that_does_not_divide_a_row_is_refused() -> None:
    with pytest.raises(BadInput, match="multiple of 4"):
        removal_mask(torch.rand(2, 6), Sparsity(0.5, 2, 4))


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(BadInput, match="NaN"):
        removal_mask(torch.tensor([[1.0, float("nan")]]), Sparsity(0.5))


def test_names_are_parsed() -> None:
    half, pattern = parse_pruning("wanda-0.5"), parse_pruning("magnitude-2of4")
    assert (half.pruner, half.sparsity.fraction, half.sparsity.is_pattern) == ("wanda", 0.5, False)
    assert (pattern.pruner, pattern.sparsity.fraction, str(pattern.sparsity)) == ("magnitude", 0.5, "2:4")


@pytest.mark.parametrize("name", ["wanda", "wanda-", "wanda-2of1", "wanda-4of4", "wanda-0of4", "wanda-1.0", "wanda-0",
                                  "wanda-50%", "prune-0.5", "Wanda-0.5", "wanda-0.5-x", 0.5, None])  # fmt: skip
def test_names_that_mean_nothing_are_refused(name: object) -> None:
    with pytest.raises(BadInput, match=r"grid\.pruning has"):
        parse_pruning(name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounding_neither_makes_nor_loses_a_zero(dtype: torch.dtype) -> None:
    weight = torch.tensor([0.0, 1e-9, -1e-12, 0.3, 1.2e-38])
    result = rounded(weight, dtype)
    assert result.dtype == dtype
    assert (result == 0).tolist() == [True, False, False, False, False]
    torch.testing.assert_close(result.float(), weight, atol=1e-7, rtol=0.01)


def test_an_update_that_cancels_a_weight_by_chance_leaves_no_zero() -> None:
    updated = without_chance_zeros(torch.tensor([0.0, 0.0, 2.0]), torch.tensor([1.0, 0.0, 1.0]))
    assert (updated == 0).tolist() == [False, True, False]
    assert updated[0] < 1e-37


@pytest.mark.parametrize("columns", [63, 64, 300])
@pytest.mark.parametrize("count", [0, 1, 20, 62])
@pytest.mark.parametrize("values", [2, 5, 10**6])
def test_of_equal_scores_those_further_left_go_in_rows_of_any_length(columns: int, count: int, values: int) -> None:
    score = torch.randint(values, (50, columns), generator=torch.Generator().manual_seed(columns)).float()
    expected = torch.zeros_like(score, dtype=torch.bool)
    for row, scores in zip(expected, score.tolist(), strict=True):
        row[sorted(range(columns), key=lambda column: (scores[column], column))[:count]] = True
    assert torch.equal(lowest(score, count), expected)
    assert torch.equal(lowest(score.T.contiguous().T, count), expected)
