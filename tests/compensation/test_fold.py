"""hooked == folded == saved and reloaded, and != the pruned model, for every family."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from restorelcc.base.errors import BadInput
from restorelcc.compensation.compensation import Compensation, Site, parse_site
from restorelcc.compensation.fold import check_class_carries, fold, folded_bias
from restorelcc.compensation.hooks import compensated, offset_heads
from restorelcc.models.architectures import (
    FAMILIES,
    blocks_of,
    family_of,
    head_layout,
    linear_of,
    out_projections,
    prunable_linears,
)
from tests import pico


def _offset(model: PreTrainedModel) -> torch.Tensor:
    layout = head_layout(model)
    offset = torch.zeros(layout.layers, layout.heads, layout.head_dim)
    generator = torch.Generator().manual_seed(1)
    for layer, head in ((0, 3), (2, 1)):  # two heads of two layers, so a mixed-up index shows
        offset[layer, head] = torch.randn(layout.head_dim, generator=generator)
    return offset


def _logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=pico.tokens()).logits


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_hooked_equals_folded_and_differs_from_base(family: str) -> None:
    model = pico.pico(family)
    base, offset = _logits(model), _offset(model)
    with offset_heads(model, offset):
        hooked = _logits(model)
    assert torch.equal(_logits(model), base), "the hooks must be gone"
    fold(model, offset)
    torch.testing.assert_close(_logits(model), hooked, atol=1e-5, rtol=1e-5)
    assert (hooked - base).abs().max() > 1e-3


@pytest.mark.parametrize("family", [name for name in pico.FAMILIES if FAMILIES[name].bias != "none"])
def test_a_folded_model_reloads_as_a_stock_checkpoint(family: str, tmp_path: Path) -> None:
    model = pico.pico(family)
    fold(model, _offset(model))
    folded = _logits(model)
    model.save_pretrained(tmp_path)
    reloaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(_logits(reloaded), folded, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_folding_touches_no_weight(family: str) -> None:
    model = pico.pico(family)
    before = {name: linear.weight.clone() for _, name, linear in prunable_linears(model)}
    fold(model, _offset(model))
    for _, name, linear in prunable_linears(model):
        assert torch.equal(linear.weight, before[name])


def test_the_bias_is_the_projected_offset_not_the_offset() -> None:
    projection = out_projections(pico.pico("llama"))[0]  # H*D = 24 inputs, M = 16 outputs
    offset_X = torch.arange(24.0)
    expected = [sum(float(w) * x for w, x in zip(row, offset_X, strict=True)) for row in projection.weight]
    torch.testing.assert_close(folded_bias(projection.weight, offset_X), torch.tensor(expected), atol=1e-4, rtol=1e-5)


def test_a_bf16_model_is_folded_in_float32() -> None:
    model = pico.pico("llama").to(torch.bfloat16)
    offset = _offset(model)
    weight, offset_X = out_projections(model)[0].weight.clone(), head_layout(model).join(offset[0])
    fold(model, offset)
    bias = out_projections(model)[0].bias
    assert bias is not None
    assert torch.equal(bias, (weight.float() @ offset_X).to(torch.bfloat16))


def test_a_compensation_of_another_shape_is_refused() -> None:
    model = pico.pico("llama")
    with pytest.raises(BadInput, match="does not fit"):
        fold(model, torch.zeros(4, 3, 6))
    with pytest.raises(BadInput, match="does not fit"), offset_heads(model, torch.zeros(3, 4, 5)):
        pass


def _everywhere(model: PreTrainedModel) -> Compensation:
    """Heads, and every linear of some layers; not the same layers for all."""
    generator = torch.Generator().manual_seed(2)
    sites = {}
    for number, path in enumerate(family_of(model).linears):
        for layer in {number % pico.LAYERS, 2}:
            outputs = linear_of(blocks_of(model)[layer], path).out_features
            sites[Site(layer, path)] = 0.2 * torch.randn(outputs, generator=generator)
    return Compensation(_offset(model), sites)


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_all_sites_hooked_equal_folded_and_each_of_them_matters(family: str) -> None:
    model = pico.pico(family)
    compensation = _everywhere(model)
    with compensated(model, compensation):
        hooked = _logits(model)
    for site in compensation.sites:
        fewer = {other: value for other, value in compensation.sites.items() if other != site}
        with compensated(model, Compensation(compensation.offset_LHD, fewer)):
            assert not torch.equal(_logits(model), hooked), f"{site} has no effect"
    fold(model, compensation)
    torch.testing.assert_close(_logits(model), hooked, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_sites_survive_saving_where_the_class_has_them_and_are_refused_where_not(family: str, tmp_path: Path) -> None:
    model = pico.pico(family)
    row = FAMILIES[family]
    whole = _everywhere(model)
    carried = {site: value for site, value in whole.sites.items() if row.bias_route(site.linear) != "none"}
    if len(carried) < len(whole.sites):
        with pytest.raises(BadInput, match=r"cannot carry a bias on .*_proj.*restorelcc export.*attach"):
            check_class_carries(model, whole)
    compensation = Compensation(whole.offset_LHD * (row.bias != "none"), carried)
    check_class_carries(model, compensation)
    fold(model, compensation)
    model.save_pretrained(tmp_path)
    reloaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(_logits(reloaded), _logits(model), atol=1e-6, rtol=1e-6)


def test_flags_are_set_only_for_what_is_compensated() -> None:
    heads, channels, nothing = (pico.pico("llama") for _ in range(3))
    fold(heads, _offset(heads))
    fold(channels, Compensation(torch.zeros(3, 4, 6), {Site(1, "down_proj"): torch.ones(16)}))
    fold(nothing, torch.zeros(3, 4, 6))
    flags = [(model.config.attention_bias, model.config.mlp_bias) for model in (heads, channels, nothing)]
    assert flags == [(True, False), (False, True), (False, False)]
    assert heads.model.layers[1].self_attn.q_proj.bias.count_nonzero() == 0
    assert channels.model.layers[0].mlp.gate_proj.bias.count_nonzero() == 0


@pytest.mark.parametrize("family", ["gpt_neox", "opt"])
def test_classes_whose_biases_were_turned_off_get_them_back(family: str, tmp_path: Path) -> None:
    flag = {"gpt_neox": "attention_bias", "opt": "enable_bias"}[family]
    model = pico.pico(family, **{flag: False})
    base = _logits(model)
    fold(model, _offset(model))
    model.save_pretrained(tmp_path)
    reloaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(_logits(reloaded), _logits(model), atol=1e-6, rtol=1e-6)
    assert (_logits(model) - base).abs().max() > 1e-3


def test_untouched_biases_keep_their_bits() -> None:
    model = pico.pico("phi")
    for _, _, linear in prunable_linears(model):
        assert linear.bias is not None
        linear.bias[0] = -0.0
    before = {name: linear.bias.clone() for _, name, linear in prunable_linears(model)}
    layout = head_layout(model)
    fold(model, torch.zeros(layout.layers, layout.heads, layout.head_dim).index_fill(0, torch.tensor(1), 0.5))
    for layer, name, linear in prunable_linears(model):
        touched = layer == 1 and name.endswith("dense")
        assert torch.equal(linear.bias.view(torch.int32), before[name].view(torch.int32)) != touched, name


def test_sites_that_do_not_fit_are_refused() -> None:
    model, offset = pico.pico(), torch.zeros(3, 4, 6)
    for site, value, message in (
        (Site(3, "mlp.down_proj"), torch.zeros(16), "in layer 3, the model has 3 layers"),
        (Site(0, "mlp.fc1"), torch.zeros(16), "not a linear layer of this model family: it has .*mlp.down_proj"),
        (Site(0, "mlp.down_proj"), torch.zeros(1), r"shape \(1,\), the linear has 16 outputs"),
        (Site(0, "mlp.down_proj"), torch.full((16,), float("nan")), "NaN or infinity in site.0.mlp.down_proj"),
    ):
        with pytest.raises(BadInput, match=message):
            fold(model, Compensation(offset, {site: value}))
        with pytest.raises(BadInput, match=message), compensated(model, Compensation(offset, {site: value})):
            pass
    assert parse_site("site.12.mlp.down_proj") == Site(12, "mlp.down_proj")
    for name in ("site.x.mlp.down_proj", "site.3.", "beta"):
        with pytest.raises(BadInput, match="is not site"):
            parse_site(name)
