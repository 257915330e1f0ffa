"""masked == sliced, for every family whose class can express it; the others are refused with the reason."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from restorelcc.base.documents import read_json
from restorelcc.base.errors import BadInput
from restorelcc.base.prunings import parse_pruning
from restorelcc.cli.export import say_what_was_written
from restorelcc.compensation.fold import fold
from restorelcc.models.architectures import FAMILIES, blocks_of, head_layout, kv_heads, out_projections
from restorelcc.models.checkpoints import save_checkpoint
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from restorelcc.release.slicing import plan_slicing, sliced
from restorelcc.stages.prune import PruneConfig
from restorelcc.stages.prune.prune import prune_model
from tests import pico
from tests.fresh import fresh, stock_logits
from tests.zeros import heads_removed_per_layer

CUTTABLE = [family for family in pico.FAMILIES if FAMILIES[family].free_head_dim]


def _masked(family: str, ratio: str = "0.45", **changes: object) -> PreTrainedModel:
    model = pico.pico(family, **changes)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.2)
    prune_model(model, parse_pruning(f"slimgpt-{ratio}"), [pico.tokens()], PruneConfig(slimgpt_first_layer=0.8))
    return model


def _logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=pico.tokens(length=16)).logits


@pytest.mark.parametrize("family", CUTTABLE)
def test_masked_equals_sliced_equals_reloaded_and_is_smaller(family: str, tmp_path: Path) -> None:
    model = _masked(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    smaller = sliced(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert not own & {parameter.data_ptr() for parameter in smaller.parameters()}
    torch.testing.assert_close(_logits(smaller), _logits(model), atol=1e-5, rtol=0)
    assert kv_heads(smaller) < kv_heads(model)
    assert head_layout(smaller).head_dim == head_layout(model).head_dim
    assert smaller.num_parameters() < model.num_parameters()
    model.save_pretrained(tmp_path / "masked")
    smaller.save_pretrained(tmp_path / "sliced")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("masked", "sliced")]
    assert sizes[1] < 0.9 * sizes[0]
    reloaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "sliced", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(_logits(reloaded), _logits(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "phi", "mistral"])
def test_a_restored_model_is_sliced_with_its_compensation(family: str) -> None:
    model = _masked(family)
    layout = head_layout(model)
    fold(model, torch.randn(layout.layers, layout.heads, layout.head_dim))
    torch.testing.assert_close(_logits(sliced(model)), _logits(model), atol=1e-5, rtol=0)


def test_multi_query_models_keep_their_single_key_head() -> None:
    model = _masked("llama", num_key_value_heads=1)
    smaller = sliced(model)
    assert kv_heads(smaller) == 1
    assert head_layout(smaller).heads < pico.HEADS
    torch.testing.assert_close(_logits(smaller), _logits(model), atol=1e-5, rtol=0)


def test_every_layer_keeps_as_many_heads_as_the_one_that_needs_most() -> None:
    model = _masked("llama")
    restored = blocks_of(model)[1].self_attn
    restored.o_proj.weight.copy_(pico.pico("llama").model.layers[1].self_attn.o_proj.weight)
    smaller = sliced(model)
    assert head_layout(smaller).heads == pico.HEADS
    torch.testing.assert_close(_logits(smaller), _logits(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", [family for family in pico.FAMILIES if family not in CUTTABLE])
def test_classes_that_cannot_have_fewer_heads_are_refused_with_the_reason(family: str) -> None:
    with pytest.raises(BadInput, match=r"computes the head dim as hidden size / heads"):
        sliced(_masked(family))


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_channels_alone_can_go_in_every_family(family: str) -> None:
    model = _masked(family, ratio="0.1")
    smaller = sliced(model)
    assert head_layout(smaller) == head_layout(model)
    assert smaller.num_parameters() < model.num_parameters()
    torch.testing.assert_close(_logits(smaller), _logits(model), atol=1e-5, rtol=0)


def test_a_model_with_nothing_removed_is_refused() -> None:
    with pytest.raises(BadInput, match="nothing to cut out"):
        sliced(pico.pico())


# Eight heads and a hidden size of 16: a Llama may have 1, 2, 4 or 8 of them.
_EIGHT: dict[str, object] = {"num_attention_heads": 8, "num_key_value_heads": 8}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}


@pytest.mark.parametrize("grouped", [False, True])
def test_a_llama_with_a_number_of_heads_it_may_not_have_becomes_the_equivalent_mistral(
    grouped: bool, tmp_path: Path
) -> None:
    changes = _EIGHT | ({"num_key_value_heads": 4} if grouped else {"rope_parameters": _LLAMA3_ROPE})
    model = _masked("llama", ratio="0.3", **changes, tie_word_embeddings=grouped)
    slicing = plan_slicing(model)
    smaller = sliced(model)
    assert pico.WIDTH % slicing.heads != 0
    assert (smaller.config.model_type, smaller.config.num_attention_heads) == ("mistral", slicing.heads)
    assert slicing.heads // kv_heads(smaller) == (2 if grouped else 1)
    assert smaller.config.intermediate_size == slicing.channels
    torch.testing.assert_close(_logits(smaller), _logits(model), atol=1e-5, rtol=0)
    smaller.save_pretrained(tmp_path)
    stock, own = fresh(stock_logits, tmp_path, pico.tokens(length=16).tolist())
    assert not own, "a process that has never seen this project's code"
    torch.testing.assert_close(torch.from_numpy(stock), _logits(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("written", ["mistral", "llama"])
def test_an_export_says_which_class_cutting_heads_out_has_made_of_it(
    written: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _masked("llama", ratio="0.3", **_EIGHT) if written == "mistral" else pico.pico("llama", **_EIGHT)
    if written == "llama":
        for projection in out_projections(model):
            projection.weight[:, 4 * pico.HEAD_DIM :] = 0  # four heads are left, as many as a Llama may have
    save_checkpoint(tmp_path / "pruned", model, pico.word_tokenizer())
    record = export_checkpoint(tmp_path / "pruned", None, tmp_path / "out", ExportOptions(cut=True))
    assert read_json(tmp_path / "out" / "config.json")["model_type"] == record["route"]["model_type"] == written
    assert record["route"]["relabelled_from"] == (None if written == "llama" else "llama")
    assert read_json(tmp_path / "out" / "restorelcc.json")["route"] == record["route"]
    say_what_was_written(tmp_path / "out", record)
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'out'}: {written}, ")
    line = "Written as a mistral model: the llama class does not take the number of heads that is left, and the two"
    card = (tmp_path / "out" / "README.md").read_text()
    assert (line in card) == (written == "mistral") and "no such biases" not in card


@pytest.mark.parametrize("why", ["asked to", "biased"])
def test_a_llama_that_stays_one_keeps_as_many_zero_heads_as_it_must(why: str, tmp_path: Path) -> None:
    model = pico.pico("llama", **_EIGHT, attention_bias=why == "biased")
    for layer, projection in enumerate(out_projections(model)):
        projection.weight[:, layer * pico.HEAD_DIM : (layer + 5) * pico.HEAD_DIM] = 0  # three heads do, four are legal
    smaller = sliced(model, same_class=why == "asked to")
    assert (smaller.config.model_type, smaller.config.num_attention_heads) == ("llama", 4)
    assert heads_removed_per_layer(smaller) == [1, 1, 1]
    smaller.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(_logits(reloaded), _logits(model), atol=1e-5, rtol=0)


def test_heads_that_no_legal_model_could_lose_alone_are_refused_with_the_reason() -> None:
    model = pico.pico("llama", **_EIGHT)
    for projection in out_projections(model):
        projection.weight[:, : pico.HEAD_DIM] = 0
    assert plan_slicing(model).heads == 7
    with pytest.raises(BadInput, match="every layer could do with 7 of its 8 heads, but no number from there to 8 is"):
        plan_slicing(model, same_class=True)
