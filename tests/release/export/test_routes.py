"""Which class a restored checkpoint is written as; what cannot be exact is refused, with the reason and a way out."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from restorelcc.base.errors import BadInput
from restorelcc.compensation.compensation import Compensation, Site
from restorelcc.compensation.hooks import compensated
from restorelcc.models.architectures import head_layout
from restorelcc.models.checkpoints import load_model
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from restorelcc.release.routes import plan_route
from tests import pico
from tests.release.export.restored import heads_of, pruned_model, write_pair

WINDOWED_QWEN = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}


def _tied(model: PreTrainedModel) -> Compensation:
    """The same offset for the query heads of a key/value head, another one for the next group."""
    layout, groups = head_layout(model), model.config.num_key_value_heads
    generator = torch.Generator().manual_seed(3)
    own = torch.randn(layout.layers, groups, 1, layout.head_dim, generator=generator)
    own[1] = 0
    return Compensation(own.expand(-1, -1, layout.heads // groups, -1).flatten(1, 2))


def _logits(model: PreTrainedModel, compensation: Compensation | None = None) -> torch.Tensor:
    with torch.no_grad():
        if compensation is None:
            return model(input_ids=pico.tokens(length=24)).logits
        with compensated(model, compensation):
            return model(input_ids=pico.tokens(length=24)).logits


def test_a_windowed_qwen2_takes_tied_offsets_up_in_the_bias_of_v(tmp_path: Path) -> None:
    model = pruned_model("qwen2", **WINDOWED_QWEN)
    assert "sliding_attention" in model.config.layer_types
    compensation = _tied(model)
    pair = write_pair(tmp_path, model, compensation)
    record = export_checkpoint(pair.pruned, pair.compensation, tmp_path / "out", ExportOptions())
    assert record["route"]["name"] == "v_proj.bias"
    assert record["route"]["model_type"] == "qwen2"
    assert record["route"]["added"] == []
    assert all(name.endswith("v_proj.bias") for name in record["route"]["folded"])
    restored = load_model(tmp_path / "out", torch.float32, torch.device("cpu"))
    torch.testing.assert_close(_logits(restored), _logits(model, compensation), atol=1e-5, rtol=0)
    assert (_logits(restored) - _logits(model)).abs().max() > 1e-2


def test_offsets_that_differ_within_a_group_are_refused_there(tmp_path: Path) -> None:
    model = pruned_model("qwen2", **WINDOWED_QWEN)
    pair = write_pair(tmp_path, model, Compensation(heads_of(model)))
    with pytest.raises(
        BadInput, match=r"sliding window of 8 tokens.*same offset, which is not the case here.*attach\(model"
    ):
        export_checkpoint(pair.pruned, pair.compensation, tmp_path / "out", ExportOptions())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compensation.safetensors", "pruned"]


def test_a_windowed_mistral_is_refused_and_one_whose_window_never_closes_is_not() -> None:
    for changes, refused in (({"sliding_window": 8}, True), ({"sliding_window": 64}, False)):
        model = pico.pico("mistral", max_position_embeddings=64, **changes)
        if not refused:
            assert plan_route(model.config, heads_of(model), head_layout(model)).relabelled_from == "mistral"
            continue
        with pytest.raises(BadInput, match=r"sliding window of 8 tokens.*no bias on self_attn.v_proj either.*attach"):
            plan_route(model.config, heads_of(model), head_layout(model))


@pytest.mark.parametrize("family", ["qwen3", "gemma", "gemma2", "gemma3_text"])
def test_channels_of_a_class_without_ffn_biases_are_refused(family: str) -> None:
    model = pico.pico(family)
    compensation = Compensation(heads_of(model), {Site(0, "mlp.down_proj"): torch.ones(pico.WIDTH)})
    with pytest.raises(BadInput, match=r"no bias on mlp.down_proj; .*attach\(model, file\)"):
        plan_route(model.config, compensation, head_layout(model))


def test_a_relabelled_model_keeps_what_its_own_class_takes_for_granted() -> None:
    # Defaults of Mistral that are not Llama's, left out of its config.json.
    model = pico.pico("mistral", rms_norm_eps=1e-3, rope_parameters={"rope_type": "default", "rope_theta": 5e4})
    route = plan_route(model.config, heads_of(model), head_layout(model))
    for key in ("rms_norm_eps", "rope_parameters", "max_position_embeddings", "head_dim", "num_key_value_heads"):
        assert getattr(route.config, key) == getattr(model.config, key), key
    assert (route.config.attention_bias, route.config.mlp_bias) == (True, False)


def test_a_shape_that_llama_refuses_is_refused_with_its_words() -> None:
    model = pico.pico("mistral", hidden_size=18)  # not a multiple of 4 heads
    with pytest.raises(BadInput, match=r"Llama class refuses its shape.*attach"):
        plan_route(model.config, heads_of(model), head_layout(model))
