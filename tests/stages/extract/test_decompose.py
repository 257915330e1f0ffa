"""Analytic cases: a planted loss is found exactly."""

from typing import Literal

import pytest
import torch

from restorelcc.models.heads import main_component
from restorelcc.stages.extract.decompose import decompose

SOLVERS: tuple[Literal["svd"], Literal["gram"]] = ("svd", "gram")


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_planted_rank_one_loss_is_recovered(solver: Literal["svd", "gram"]) -> None:
    generator = torch.Generator().manual_seed(0)
    direction_HD = torch.nn.functional.normalize(torch.randn(3, 6, generator=generator), dim=-1)
    weight_NH = 2 + torch.rand(50, 3, generator=generator)
    parts = decompose(weight_NH[..., None] * direction_HD, solver)
    cosine = (parts.directions_HDD[:, 0] * direction_HD).sum(-1).abs()
    torch.testing.assert_close(cosine, torch.ones(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(parts.singular_values_HD[:, 0], weight_NH.norm(dim=0), atol=1e-4, rtol=1e-5)
    assert parts.singular_values_HD[:, 1:].abs().max() < 1e-4
    # c with K = 1 is then the whole mean loss.
    mean_HD = weight_NH.mean(dim=0)[:, None] * direction_HD
    torch.testing.assert_close(
        main_component(parts.directions_HDD, parts.loadings_HD, 1), mean_HD, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("samples", [4, 40])
def test_all_components_are_the_mean_shift(solver: Literal["svd", "gram"], samples: int) -> None:
    lost_NHD = torch.randn(samples, 5, 6, generator=torch.Generator().manual_seed(1))
    parts = decompose(lost_NHD, solver)
    whole = main_component(parts.directions_HDD, parts.loadings_HD, 6)
    torch.testing.assert_close(whole, lost_NHD.mean(dim=0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("samples", [1, 4, 6, 40])
def test_directions_are_orthonormal_and_ordered_also_with_few_samples(
    solver: Literal["svd", "gram"], samples: int
) -> None:
    parts = decompose(torch.randn(samples, 5, 6, generator=torch.Generator().manual_seed(2)), solver)
    products = parts.directions_HDD @ parts.directions_HDD.mT
    torch.testing.assert_close(products, torch.eye(6).expand(5, 6, 6), atol=1e-5, rtol=0)
    values = parts.singular_values_HD
    assert (values[:, :-1] >= values[:, 1:] - 1e-6).all()
    if samples < 6:
        assert values[:, samples:].abs().max() < 1e-5
        assert (parts.loadings_HD[:, samples:] == 0).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_loss_is_reconstructed(solver: Literal["svd", "gram"]) -> None:
    lost_NHD = torch.randn(30, 4, 6, generator=torch.Generator().manual_seed(3))
    v_HDD = decompose(lost_NHD, solver).directions_HDD
    projected = torch.einsum("nhd,hkd,hke->nhe", lost_NHD, v_HDD, v_HDD)
    torch.testing.assert_close(projected, lost_NHD, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_number_of_threads_changes_no_bit(solver: Literal["svd", "gram"], monkeypatch: pytest.MonkeyPatch) -> None:
    """It decides how many heads are decomposed at once: 3 and 2 of these 9."""
    lost_NHD = torch.randn(20, 9, 6, generator=torch.Generator().manual_seed(5))
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(decompose(lost_NHD, solver))
        finally:
            torch.set_num_threads(before)
    for name in ("directions_HDD", "singular_values_HD", "loadings_HD"):
        assert torch.equal(getattr(found[0], name), getattr(found[1], name)), name


def test_both_solvers_agree_and_signs_are_fixed() -> None:
    lost_NHD = torch.randn(60, 4, 6, generator=torch.Generator().manual_seed(4))
    svd, gram = decompose(lost_NHD, "svd"), decompose(lost_NHD, "gram")
    torch.testing.assert_close(svd.directions_HDD, gram.directions_HDD, atol=1e-5, rtol=0)
    torch.testing.assert_close(svd.loadings_HD, gram.loadings_HD, atol=1e-5, rtol=0)
    largest = svd.directions_HDD.gather(-1, svd.directions_HDD.abs().argmax(-1, keepdim=True))
    assert (largest > 0).all()
