"""What a model costs."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from restorelcc.compensation.fold import fold
from restorelcc.stages.evaluate.cost import (
    file_bytes,
    folded_parameters,
    latency,
    linear_biases,
    parameter_counts,
    peak_memory_bytes,
    set_biases,
    sparsity_of,
)
from tests import pico


def test_counts_of_parameters_and_zeros() -> None:
    model = pico.pico()
    first = model.model.layers[0].self_attn.q_proj.weight
    before = parameter_counts(model)["params_nonzero"]  # the embedding of the padding token is zero from the start
    first[0] = 0
    counts = parameter_counts(model)
    assert counts["params_total"] == sum(p.numel() for p in model.parameters())
    assert counts["params_nonzero"] == before - first.shape[1]
    prunable = sum(m.weight.numel() for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear))
    assert sparsity_of(model) == pytest.approx(first.shape[1] / prunable)


def _offset() -> torch.Tensor:
    offset = torch.zeros(pico.LAYERS, pico.HEADS, pico.HEAD_DIM)
    offset[1, 2, 3] = 1.0
    return offset


def test_added_parameters_are_bias_entries_of_layers_with_a_compensated_head() -> None:
    assert folded_parameters(pico.pico("llama"), _offset()) == pico.WIDTH
    assert folded_parameters(pico.pico("opt"), _offset()) == 0, "OPT's out-projection has a bias already"


def test_latency_times_the_same_weights_with_both_biases_and_leaves_the_model_restored() -> None:
    model, tokens = pico.pico(), pico.tokens()
    pruned = model(input_ids=tokens).logits
    before = linear_biases(model)
    fold(model, _offset())
    restored = model(input_ids=tokens).logits
    found = latency(model, tokens, before)
    assert found["ratio"] > 0
    assert found["rounds"] >= 3
    assert (found["batch"], found["tokens"]) == tuple(tokens.shape)
    assert torch.equal(model(input_ids=tokens).logits, restored)
    set_biases(model, before)
    assert torch.equal(model(input_ids=tokens).logits, pruned)


def test_file_size_and_peak_memory(tmp_path: Path) -> None:
    model = pico.pico()
    model.save_pretrained(tmp_path)
    assert file_bytes(tmp_path) == (tmp_path / "model.safetensors").stat().st_size
    assert peak_memory_bytes(model) > 50 * 2**20


def test_peak_memory_of_a_model_on_two_gpus_is_that_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 100 + device.index)
    parts = [SimpleNamespace(device=torch.device("cuda", number)) for number in (0, 1, 1)]
    assert peak_memory_bytes(SimpleNamespace(parameters=lambda: iter(parts))) == 201
