"""hooked == folded == saved and reloaded, and != the pruned model, for every family."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from restorelcc.core.architectures import FAMILIES, head_layout, out_projections, prunable_linears
from restorelcc.core.errors import BadInput
from restorelcc.core.fold import fold, folded_bias
from restorelcc.core.hooks import offset_heads
from tests import pico


def _offset(model: torch.nn.Module) -> torch.Tensor:
    layout = head_layout(model)  # type: ignore[arg-type]
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


@pytest.mark.parametrize("family", [name for name, row in FAMILIES.items() if row.bias != "none"])
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
