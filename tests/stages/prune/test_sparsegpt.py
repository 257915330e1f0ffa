"""SparseGPT against optimal brain surgeon by hand, and its exact counts when blocks and rows do not fit."""

import pytest
import torch

from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.prunings import Sparsity
from restorelcc.sparsity.patterns import pruned_count
from restorelcc.stages.prune.sparsegpt import damped, inverse_factor, sparsegpt
from tests.zeros import holds_pattern, zeros_per_row

HALF, TWO_OF_FOUR = Sparsity(0.5), Sparsity(0.5, 2, 4)


def _correlated(inputs: int = 24, tokens: int = 300, seed: int = 0) -> torch.Tensor:
    """Inputs [N, I] that share factors, so that a weight can make up for another."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(tokens, inputs // 2, generator=generator)
    return factors @ torch.randn(inputs // 2, inputs, generator=generator) + 0.1 * torch.randn(
        tokens, inputs, generator=generator
    )


def _lost(weight: torch.Tensor, pruned: torch.Tensor, x: torch.Tensor) -> float:
    return float(((weight - pruned) @ x.T).norm())


def test_the_factor_is_the_upper_cholesky_factor_of_the_inverse() -> None:
    x = _correlated()
    hessian = damped(x.T @ x, 0.01)
    factor = inverse_factor(hessian)
    assert torch.equal(factor, factor.triu())
    expected = torch.linalg.cholesky(torch.linalg.inv(hessian.double()), upper=True)
    torch.testing.assert_close(factor.double(), expected, rtol=1e-3, atol=1e-4)


def test_a_hessian_that_is_not_positive_definite_is_reported() -> None:
    with pytest.raises(StageFailed, match=r"raise prune\.damping"):
        inverse_factor(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))


def test_removing_one_weight_is_the_surgeons_step() -> None:
    x = _correlated(inputs=4)
    weight = torch.tensor([[0.01, 2.0, -3.0, 4.0]])  # the first costs least, and all others may make up for it
    pruned = sparsegpt(weight, x.T @ x, Sparsity(0.25))
    inverse = torch.linalg.inv(damped(x.T @ x, 0.01).double())
    expected = weight.double() - weight[0, 0].double() / inverse[0, 0] * inverse[0]
    torch.testing.assert_close(pruned.double(), expected.index_fill(1, torch.tensor(0), 0), rtol=1e-4, atol=1e-5)


def _algorithm_1(weight_OI: torch.Tensor, gram_II: torch.Tensor, sparsity: Sparsity, columns: int) -> torch.Tensor:
    """SparseGPT's algorithm 1 as it is printed, in float64: one column after another changes all columns after it, and
    a mask is chosen for `columns` of them at once."""
    factor = torch.linalg.cholesky(torch.linalg.inv(damped(gram_II, 0.01).double()), upper=True)
    weight, inputs = weight_OI.double().clone(), weight_OI.shape[1]
    removed = torch.zeros_like(weight, dtype=torch.bool)
    for column in range(inputs):
        if column % columns == 0:
            end = min(column + columns, inputs)
            score = (weight[:, column:end] / factor.diagonal()[column:end]) ** 2
            count = pruned_count(end, sparsity) - pruned_count(column, sparsity)
            removed[:, column:end].scatter_(1, score.argsort(dim=1)[:, :count], True)
        error = weight[:, column] * removed[:, column] / factor[column, column]
        weight[:, column:] -= error[:, None] * factor[column, column:]
    return weight.masked_fill(removed, 0)


@pytest.mark.parametrize(
    ("sparsity", "block_columns", "masked_at_once"),
    [*((HALF, columns, min(columns, 24)) for columns in (128, 10, 7, 2)), (TWO_OF_FOUR, 128, 4), (TWO_OF_FOUR, 10, 4)],
)
def test_whole_matrices_are_those_of_algorithm_1_whatever_the_blocks(
    sparsity: Sparsity, block_columns: int, masked_at_once: int
) -> None:
    x, weight = _correlated(), torch.randn(16, 24, generator=torch.Generator().manual_seed(1))
    pruned = sparsegpt(weight, x.T @ x, sparsity, block_columns=block_columns)
    expected = _algorithm_1(weight, x.T @ x, sparsity, masked_at_once)
    assert torch.equal(pruned == 0, expected == 0)
    torch.testing.assert_close(pruned.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sparsity", [HALF, TWO_OF_FOUR])
def test_compensation_beats_the_same_mask_without_it(sparsity: Sparsity) -> None:
    x, weight = _correlated(), torch.randn(16, 24, generator=torch.Generator().manual_seed(1))
    pruned = sparsegpt(weight, x.T @ x, sparsity)
    assert _lost(weight, pruned, x) < 0.7 * _lost(weight, weight.masked_fill(pruned == 0, 0), x)


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.77])
@pytest.mark.parametrize("block_columns", [128, 10, 7, 1])
def test_rows_have_the_exact_count_whatever_the_blocks(fraction: float, block_columns: int) -> None:
    x, weight = _correlated(), torch.randn(9, 24)
    pruned = sparsegpt(weight, x.T @ x, Sparsity(fraction), block_columns=block_columns)
    assert zeros_per_row(pruned).tolist() == [pruned_count(24, Sparsity(fraction))] * 9


@pytest.mark.parametrize(("keep", "group"), [(2, 4), (4, 8), (1, 4), (1, 3)])
@pytest.mark.parametrize("block_columns", [128, 10, 1])
def test_groups_never_straddle_blocks(keep: int, group: int, block_columns: int) -> None:
    x, weight = _correlated(), torch.randn(9, 24)
    pruned = sparsegpt(weight, x.T @ x, Sparsity(1 - keep / group, keep, group), block_columns=block_columns)
    assert ((pruned.reshape(-1, group) != 0).sum(dim=1) == keep).all()
    assert holds_pattern(pruned, keep, group)


def test_a_pattern_that_does_not_divide_a_row_is_refused() -> None:
    with pytest.raises(BadInput, match="multiple of 16"):
        sparsegpt(torch.ones(2, 24), torch.eye(24), Sparsity(0.5, 8, 16))


def test_inputs_that_are_always_zero_go_first_and_the_rest_of_them_stay_as_they_were() -> None:
    x = _correlated(inputs=8)
    x[:, :3] = 0
    weight = torch.randn(5, 8)
    assert (sparsegpt(weight, x.T @ x, Sparsity(0.375))[:, :3] == 0).all()
    fewer = sparsegpt(weight, x.T @ x, Sparsity(0.25))
    assert torch.equal(fewer[:, 2], weight[:, 2])
    assert (zeros_per_row(fewer) == 2).all()


def test_a_survivor_that_the_update_cancels_is_not_counted_as_removed() -> None:
    # Damped: [[0.5, -0.5], [-0.5, 1]] with the factor [[2, 1], [0, 1]]; removing the 2 takes 2 / 2 * 1 off the 1.
    weight = torch.tensor([[2.0, 1.0]])
    pruned = sparsegpt(weight, torch.tensor([[0.25, -0.5], [-0.5, 0.75]]), HALF, damping=0.5)
    assert weight.tolist() == [[2.0, 1.0]]
    assert pruned[0, 0] == 0
    assert 0 < pruned[0, 1] < 1e-37
