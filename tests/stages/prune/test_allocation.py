"""Sparsity by block: exact totals, monotone blocks, OWL's formula, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from restorelcc.base.errors import BadInput
from restorelcc.base.prunings import UNSTRUCTURED_PRUNERS, Sparsity, parse_pruning
from restorelcc.models.architectures import prunable_linears
from restorelcc.models.biases import give_zero_biases
from restorelcc.pipeline.params import Params, checked
from restorelcc.pipeline.params_file import read_params
from restorelcc.sparsity.patterns import pruned_count
from restorelcc.stages.prune import PruneConfig, check_allocation
from restorelcc.stages.prune.allocation import (
    Place,
    allocated_zeros,
    arithmetic_shifts,
    outlier_share,
    owl_shifts,
    row_counts,
)
from restorelcc.stages.prune.prune import PrunedTensor, prune_model
from restorelcc.stages.report.results import Group
from restorelcc.stages.report.sentences import how_pruned
from tests import pico
from tests.stages.prune.project import CONFIG, project, prune
from tests.zeros import zeros_per_row

ARITHMETIC = CONFIG.model_copy(update={"allocation": "arithmetic", "allocation_spread": 0.3})
OWL = CONFIG.model_copy(update={"allocation": "owl", "allocation_spread": 0.3, "allocation_outliers": 2.0})


def _by_layer(results: list[PrunedTensor]) -> list[int]:
    return [sum(result.zeros for result in results if result.layer == layer) for layer in range(pico.LAYERS)]


@pytest.mark.parametrize("config", [ARITHMETIC, OWL], ids=["arithmetic", "owl"])
@pytest.mark.parametrize("pruner", UNSTRUCTURED_PRUNERS)
def test_the_model_has_the_zeros_of_uniform_and_rows_differ_by_one(pruner: str, config: PruneConfig) -> None:
    uniform = prune_model(pico.pico(), parse_pruning(f"{pruner}-0.45"), [pico.tokens()], CONFIG)
    model = pico.pico()
    results = prune_model(model, parse_pruning(f"{pruner}-0.45"), [pico.tokens()], config)
    assert sum(result.zeros for result in results) == sum(result.zeros for result in uniform)
    assert len(set(_by_layer(uniform))) == 1 and len(set(_by_layer(results))) > 1
    for _, name, linear in prunable_linears(model):
        counts = zeros_per_row(linear.weight)
        assert int(counts.max() - counts.min()) <= 1, name
        assert torch.equal(counts, counts.sort(descending=True).values), "the first rows lose one more"
    if config.allocation == "arithmetic":
        least, middle, most = _by_layer(results)
        assert least < middle < most
        total = sum(result.total for result in results) / pico.LAYERS
        assert most - least == pytest.approx(0.3 * total, abs=len(results))


@pytest.mark.parametrize("family", ["opt", "gpt_neox"])
def test_biases_and_allocation_go_together(family: str) -> None:
    model = pico.pico(family)
    give_zero_biases(model)
    results = prune_model(model, parse_pruning("refined-0.5"), [pico.tokens()], ARITHMETIC)
    assert sum(result.zeros for result in results) == sum(result.total for result in results) // 2


def test_zeros_add_up_whatever_the_shapes_and_shifts() -> None:
    generator = torch.Generator().manual_seed(0)
    for layers in (1, 2, 5):
        shifts = (0.2 * torch.rand(layers, generator=generator)).tolist()
        places = {
            f"{layer}.{kind}": Place(layer, *torch.randint(1, 40, (2,), generator=generator).tolist())
            for layer in range(layers)
            for kind in "abc"
        }
        for fraction in (0.3, 0.5, 0.613):
            zeros = allocated_zeros(places, Sparsity(fraction), shifts)
            wanted = sum(pruned_count(place.inputs, Sparsity(fraction)) * place.rows for place in places.values())
            assert sum(zeros.values()) == wanted
            for name, place in places.items():
                assert int(row_counts(zeros[name], place.rows).sum()) == zeros[name]


def test_arithmetic_shifts_are_equal_steps_about_zero() -> None:
    assert arithmetic_shifts(5, 0.2) == pytest.approx([-0.1, -0.05, 0, 0.05, 0.1])
    assert arithmetic_shifts(1, 0.2) == [0]


def test_outliers_are_counted_against_the_mean_of_the_block_and_cost_sparsity() -> None:
    scores = [torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([[1.0, 1.0, 1.0, 13.0]])]  # mean 2.5
    assert outlier_share(lambda: scores, above=5) == 1 / 8
    assert outlier_share(lambda: scores, above=6) == 0
    assert owl_shifts([0.02, 0.06, 0.04], 0.16) == pytest.approx([0, -0.16, -0.08])
    assert owl_shifts([0.02, 0.02], 0.16) == [0, 0]


def test_owl_looks_at_the_dense_blocks() -> None:
    model = pico.pico()
    for layer, _, linear in prunable_linears(model):
        if layer == 1:
            linear.weight[:, 0] *= 40  # outliers
    config = OWL.model_copy(update={"allocation_outliers": 5.0})
    first, middle, last = _by_layer(prune_model(model, parse_pruning("wanda-0.5"), [pico.tokens()], config))
    assert middle < min(first, last)


@pytest.mark.parametrize("config", [ARITHMETIC, OWL], ids=["arithmetic", "owl"])
def test_the_stage_says_it_and_is_byte_identical_when_run_again(config: PruneConfig, tmp_path: Path) -> None:
    layout = project(tmp_path, pico.pico())
    folder = prune(layout, "wanda-0.5", config)
    document = json.loads((folder / "sparsity.json").read_text())
    expected = {"by": config.allocation, "spread": 0.3}
    assert document["allocation"] == expected | ({"outliers_above": 2.0} if config.allocation == "owl" else {})
    assert document["achieved"] == document["requested"] == 0.5
    assert len({layer["sparsity"] for layer in document["layers"]}) > 1
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {path.name: path.read_bytes() for path in prune(layout, "wanda-0.5", config).iterdir()} == before


def test_the_report_says_it() -> None:
    layers = [{"layer": layer, "sparsity": share} for layer, share in enumerate((0.4, 0.5, 0.6))]
    details = {"layers": layers, "allocation": {"by": "arithmetic", "spread": 0.2}}
    (sentence,) = how_pruned(Group("pico", "wanda-0.5", [{"details": details}]))
    assert sentence == "Each block lost its own share, 40.0% to 60.0%, by equal steps from the first to the last."


def test_uniform_is_not_mentioned(tmp_path: Path) -> None:
    document = json.loads((prune(project(tmp_path, pico.pico()), "wanda-0.5") / "sparsity.json").read_text())
    assert "allocation" not in document


@pytest.mark.parametrize("pruning", ["wanda-2of4", "refined-2of4", "slimgpt-0.2"])
@pytest.mark.parametrize("allocation", ["arithmetic", "owl"])
def test_what_cannot_follow_is_refused_from_the_parameters_alone(pruning: str, allocation: str) -> None:
    raw = read_params(Path(__file__).parents[3] / "params.yaml")
    raw["grid"]["pruning"] = ["wanda-0.5"]
    override = f"prune.allocation={allocation}"
    assert isinstance(checked(raw, (override,)), Params)
    raw["grid"]["pruning"] = ["wanda-0.5", pruning]
    with pytest.raises(BadInput, match=rf"prune\.allocation is {allocation}, which {pruning} cannot follow"):
        checked(raw, (override,))


@pytest.mark.parametrize("config", [ARITHMETIC, OWL], ids=["arithmetic", "owl"])
def test_a_spread_that_asks_for_less_than_nothing_is_refused(config: PruneConfig) -> None:
    """A tenth of 16 inputs is one of them, 6.2 %: less than half of the spread, which 10 % is not."""
    narrow = config.model_copy(update={"allocation_spread": 0.16})
    with pytest.raises(BadInput, match=r"prune\.allocation_spread asks for blocks that lose -"):
        prune_model(pico.pico(), parse_pruning("wanda-0.1"), [pico.tokens()], narrow)


def test_a_spread_that_takes_everything_is_refused() -> None:
    with pytest.raises(BadInput, match=r"blocks that lose 75% to 105%"):
        check_allocation(parse_pruning("wanda-0.9"), ARITHMETIC)
    with pytest.raises(BadInput, match=r"prune\.allocation_spread"):
        prune_model(pico.pico(), parse_pruning("wanda-0.9"), [pico.tokens()], OWL)
    check_allocation(parse_pruning("external-mine"), OWL)
