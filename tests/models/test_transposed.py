"""GPT-2's Conv1D seen as Linear layers: the same outputs, the same checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from restorelcc.base.digest import model_digest
from restorelcc.base.errors import BadInput
from restorelcc.compensation.compensation import Compensation
from restorelcc.compensation.file import write_compensation
from restorelcc.models.architectures import blocks_of, head_layout, linear_of
from restorelcc.models.checkpoints import load_model
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.models.transposed import TurnedLinear, with_linears
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from tests import pico
from tests.release.export.restored import heads_of, pruned_model, write_pair


def _stock() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=24, n_layer=3, n_head=4, n_inner=32, n_positions=64)
    return GPT2LMHeadModel(config).eval().requires_grad_(False)


def test_outputs_and_state_stay_the_same(tmp_path: Path) -> None:
    model = _stock()
    before, state = model(input_ids=pico.tokens()).logits, model.state_dict()
    linear = linear_of(blocks_of(model)[1], "mlp.c_fc")
    assert isinstance(linear, TurnedLinear)
    assert linear.weight.shape == (32, 24) == (linear.out_features, linear.in_features)
    torch.testing.assert_close(model(input_ids=pico.tokens()).logits, before)
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    model.load_state_dict(state)
    linear.weight[:, 3] = 0
    model.save_pretrained(tmp_path)
    stored = stored_tensors(tmp_path)["transformer.h.1.mlp.c_fc.weight"]
    assert stored.shape == (24, 32)
    assert torch.equal(stored.as_linear(True).read(), linear.weight)
    stored.as_linear(True).overwrite(linear.weight * 2)
    assert torch.equal(stored.read(), linear.weight.T * 2)
    stored.as_linear(True).overwrite(linear.weight)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(
        reloaded(input_ids=pico.tokens()).logits, model(input_ids=pico.tokens()).logits, atol=1e-5, rtol=0
    )


def test_a_spread_model_is_refused() -> None:
    model = _stock()
    model.transformer.h[0].mlp.c_fc._hf_hook = object()
    with pytest.raises(BadInput, match="cannot be spread over devices"):
        with_linears(model)


@torch.no_grad()
def test_a_checkpoint_without_the_prefix_is_exported_as_its_class_names_it(tmp_path: Path) -> None:
    model = pruned_model("gpt2", tie_word_embeddings=True)
    compensation = Compensation(heads_of(model))
    pair = write_pair(tmp_path, model, compensation)
    model.transformer.save_pretrained(pair.pruned)  # as gpt2 lies on the hub
    assert "h.0.attn.c_attn.weight" in stored_tensors(pair.pruned)
    write_compensation(pair.compensation, compensation, {"model": "pico", "pruned": model_digest(pair.pruned)})
    export_checkpoint(pair.pruned, pair.compensation, tmp_path / "out", ExportOptions())
    restored, pruned = (
        load_model(path, torch.float32, torch.device("cpu")) for path in (tmp_path / "out", pair.pruned)
    )
    assert head_layout(restored) == head_layout(pruned)
    offset_X = compensation.offset_LHD[0].flatten()
    bias_M, weight_MX = (linear_of(blocks_of(each)[0], "attn.c_proj") for each in (restored, pruned))
    torch.testing.assert_close(bias_M.bias, weight_MX.bias + weight_MX.weight @ offset_X)
