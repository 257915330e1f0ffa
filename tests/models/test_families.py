"""Every family of the table, from its config to a restored checkpoint; in pico sizes, with nothing computed twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from benchmarks.families import PAGE, page
from restorelcc.base.errors import BadInput
from restorelcc.base.prunings import parse_pruning
from restorelcc.cli.inspect import inspect
from restorelcc.compensation.compensation import Compensation
from restorelcc.compensation.fold import fold
from restorelcc.compensation.hooks import compensated
from restorelcc.models.architectures import (
    FAMILIES,
    all_blocks,
    blocks_of,
    check_scores,
    check_whole_parts,
    family_of,
    ffn_width_of_config,
    head_layout,
    layout_of_config,
    linear_of,
    linears_of,
    out_projections,
    prunable_linears,
)
from restorelcc.models.biases import biased_linears
from restorelcc.models.checkpoint_check import _expected
from restorelcc.models.checkpoints import load_model
from restorelcc.models.family import Family
from restorelcc.models.tokenizers import source_config
from restorelcc.models.walk import walk_blocks
from restorelcc.release.engines.table import TRANSFORMERS
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from restorelcc.release.inspect import family as inspection
from restorelcc.release.inspect.family import found_family, row_text
from restorelcc.release.routes import carried_by, check_route
from restorelcc.release.slicing import plan_slicing, sliced
from restorelcc.release.verify.logits import load_fresh
from restorelcc.stages.capture.capture import Sample, capture_heads
from restorelcc.stages.prune import PruneConfig
from restorelcc.stages.prune.prune import prune_model
from tests import pico
from tests.fresh import verify_in_forks
from tests.release.export.restored import heads_of, pruned_model, sites_of, write_pair

# Also tried: other shapes of families whose config changes what a block is.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon-multi-query": ("falcon", {"new_decoder_architecture": False, "multi_query": True, "bias": True}),
    "falcon-alibi": (
        "falcon",
        {"new_decoder_architecture": False, "multi_query": False, "num_kv_heads": pico.HEADS, "alibi": True},
    ),
    "ministral-whole": ("ministral", {"sliding_window": 8, "layer_types": ["full_attention"] * pico.LAYERS}),
    "cwm-whole": ("cwm", {"layer_types": ["full_attention"] * pico.LAYERS, "mlp_bias": True}),
    "ministral3-plain": (
        "ministral3",
        {
            "rope_parameters": {
                "rope_theta": 1e4,
                "llama_4_scaling_beta": 0.0,
                "original_max_position_embeddings": 64,
                "rope_type": "default",
            }
        },
    ),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True}),
}
CASES = {family: (family, {}) for family in pico.ALL_FAMILIES} | VARIANTS
# Families of which only attention, and what all tokens share, is known: mixtures of experts, and hybrids.
PARTIAL = {case for case, (family, _) in CASES.items() if FAMILIES[family].experts or FAMILIES[family].hybrid}
everyone = pytest.mark.parametrize("case", CASES)


def _model(case: str, **more: object) -> PreTrainedModel:
    family, changes = CASES[case]
    return pico.pico(family, **changes | more)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small only wait for other threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@torch.no_grad()
def _logits(model: nn.Module) -> Tensor:
    return model(input_ids=pico.tokens()).logits


def test_every_family_of_the_table_has_a_pico_model() -> None:
    assert set(pico.ALL_FAMILIES) == set(FAMILIES)
    assert len(FAMILIES) >= 35


@everyone
def test_the_row_names_what_the_class_has(case: str) -> None:
    model, layout = _model(case), head_layout(_model(case))
    row, config, block = family_of(model), model.config, blocks_of(model)[-1]
    linears = {id(module) for module in all_blocks(model).modules() if isinstance(module, nn.Linear)}
    targeted = {id(linear) for _, _, linear in prunable_linears(model)}
    assert targeted == linears if case not in PARTIAL else targeted <= linears
    assert (layout.heads, layout.head_dim) == (pico.HEADS, 8 if case == "phi" else pico.HEAD_DIM)
    assert layout.layers == (len(layout.blocks) if layout.blocks else pico.LAYERS)
    assert bool(layout.blocks) is row.hybrid
    assert layout_of_config(config) == layout
    assert case in PARTIAL or ffn_width_of_config(config) == linear_of(block, row.ffn_out).in_features
    for path, shape in _expected(config, row).items():
        assert linear_of(block, path).weight.shape == shape, path
    assert {path for path, linear in linears_of(block, row) if linear.bias is not None} == set(biased_linears(config))
    able = dict(linears_of(blocks_of(_model(case, **dict.fromkeys(row.bias_flags, True)))[-1], row))
    assert set(able) == set(row.linears) or case in PARTIAL
    for path, linear in able.items():
        assert (linear.bias is not None) == (row.bias_route(path) != "none"), path
    for part, paths in {"qkv": row.qkv, "out": (row.out_proj,), "ffn": row.ffn}.items():
        read = bool(paths) and all(row.bias_route(path) != "none" for path in paths)
        assert (getattr(TRANSFORMERS.rows[CASES[case][0]], part) == "read") is read, part


@everyone
def test_the_walk_is_the_models_own_forward(case: str) -> None:
    model, batch_BT, seen = _model(case), pico.tokens(), []
    hooks = [
        block.register_forward_hook(lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for block in all_blocks(model)
    ]
    _logits(model)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for step, own_BTM in zip(walk_blocks(model, [batch_BT]), seen, strict=True):
            torch.testing.assert_close(step.output(0), own_BTM, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case not in PARTIAL])
def test_pruning_leaves_exactly_the_zeros_asked_for(case: str) -> None:
    for name in ("wanda-0.5", "sparsegpt-2of4"):
        model = _model(case)
        before = _logits(model)
        results = prune_model(model, parse_pruning(name), [pico.tokens(), pico.tokens(seed=1)])
        assert len(results) == pico.LAYERS * len(family_of(model).linears)
        for result, (_, _, linear) in zip(results, prunable_linears(model), strict=False):
            assert result.total == 2 * result.zeros or linear.weight.shape[1] % 2, result
        for _, path, linear in prunable_linears(model):
            kept_OI = linear.weight != 0
            if name == "sparsegpt-2of4" and kept_OI.shape[1] % 4 == 0:
                assert bool((kept_OI.unflatten(1, (-1, 4)).sum(dim=2) == 2).all()), path
            else:
                assert bool((kept_OI.sum(dim=1) == kept_OI.shape[1] - kept_OI.shape[1] // 2).all()), path
        assert not torch.allclose(_logits(model), before)


@everyone
def test_what_is_captured_is_the_input_of_the_projection(case: str) -> None:
    model, samples = _model(case), []
    for number, (question, good, bad) in enumerate([(3, 2, 1), (12, 1, 5), (5, 4, 4), (14, 2, 6)]):
        ids = pico.tokens(1, question + good + bad, seed=number)[0].tolist()
        samples.append(Sample(ids[: question + good], question - 1, ids[:question] + ids[question + good :]))
    seen: list[Tensor] = []
    hooks = [
        projection.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0][0, -1]))
        for projection in out_projections(model)
    ]
    with torch.no_grad():
        for sample in samples:
            for ids in (sample.first[: (sample.question_end or 0) + 1], sample.first, sample.second):
                model(input_ids=torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    expected = torch.stack(seen).reshape(len(samples), 3, head_layout(model).layers, -1).permute(2, 0, 1, 3)
    for together in (True, False) if family_of(model).packs else (False,):
        found = capture_heads(model, samples, token_budget=64, pad=0, joint=together)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@dataclass
class _Restored:
    pruned: Path
    folder: Path | None
    refusal: str
    hooked_BTV: Tensor
    folded_BTV: Tensor
    pruned_BTV: Tensor
    attached_BTV: Tensor
    loaded_BTV: Tensor | None = None
    loaded_class: str = ""


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, _Restored]:
    """Exported where the family has a route, and loaded by forks that know transformers alone."""
    root, made = tmp_path_factory.mktemp("all"), {}
    for case, (family, changes) in CASES.items():
        model = pruned_model(family, **changes)
        row = family_of(model)
        sites = tuple(path for path in row.linears if row.bias_route(path) != "none")
        compensation = Compensation(heads_of(model), sites_of(model, sites))
        pair = write_pair(root / case, model, compensation)
        folder: Path | None = root / case / "out"
        refusal = ""
        try:
            export_checkpoint(pair.pruned, pair.compensation, root / case / "out", ExportOptions())
        except BadInput as error:
            folder, refusal = None, str(error)
        reloaded = load_model(pair.pruned, torch.float32, torch.device("cpu"))
        pruned_BTV = _logits(model)
        with compensated(reloaded, compensation):
            attached_BTV = _logits(reloaded)
        with compensated(model, compensation):
            hooked_BTV = _logits(model)
        fold(model, compensation)
        made[case] = _Restored(pair.pruned, folder, refusal, hooked_BTV, _logits(model), pruned_BTV, attached_BTV)
    exported = [each for each in made.values() if each.folder is not None]
    with verify_in_forks():
        found = load_fresh([(each.folder, pico.tokens().tolist()) for each in exported])  # type: ignore[misc]
    for each, loaded in zip(exported, found, strict=True):
        assert not loaded.report["missing_keys"] and not loaded.report["unexpected_keys"], loaded.report
        each.loaded_BTV, each.loaded_class = loaded.float32_BTV, loaded.report["class"]
    return made


@everyone
def test_hooked_equals_folded_equals_exported_and_reloaded(restored: Any, case: str) -> None:
    each = restored[case]
    scale = float(each.hooked_BTV.abs().max().clamp_min(1))
    assert float((each.hooked_BTV - each.pruned_BTV).abs().max()) > 1e-3 * scale
    for other_BTV in (each.folded_BTV, each.attached_BTV, each.loaded_BTV):
        if other_BTV is not None:
            assert float((other_BTV - each.hooked_BTV).abs().max()) <= 1e-5 * scale


def test_ministral_without_windows_becomes_llama(restored: Any) -> None:
    for case in ("ministral-whole", "cwm-whole", "ministral3-plain"):
        assert restored[case].loaded_class == "LlamaForCausalLM"
    assert "scales its queries by their position" in restored["ministral3"].refusal
    assert "sliding window of 8 tokens" in restored["ministral"].refusal


@everyone
def test_a_config_alone_tells_whether_there_is_a_route(restored: Any, case: str) -> None:
    each, config = restored[case], AutoConfig.from_pretrained(restored[case].pruned)
    if each.folder is not None:
        check_route(config)
        assert not each.refusal
        return
    with pytest.raises(BadInput, match=r"no stock .* can carry.*restorelcc\.attach"):
        check_route(config)
    assert "restorelcc.attach" in each.refusal


@pytest.mark.parametrize("case", sorted(PARTIAL))
def test_weights_of_experts_and_hybrids_are_not_pruned_here(case: str) -> None:
    reason = "their experts are fused" if FAMILIES[case].experts else "some of their layers are no attention"
    with pytest.raises(BadInput, match=f"wanda-0.5 cannot prune '{case}' models: {reason}.*external-<name>"):
        prune_model(pico.pico(case), parse_pruning("wanda-0.5"), [pico.tokens()])
    with pytest.raises(BadInput, match=reason):
        check_scores(pico.pico(case).config, "slimgpt-0.2")


@pytest.mark.parametrize(
    "family", [name for name, row in FAMILIES.items() if row.whole_parts_refused and name not in PARTIAL]
)
def test_families_without_whole_parts_say_so(family: str) -> None:
    model = pico.pico(family)
    with pytest.raises(BadInput, match=f"whole heads and channels, which '{family}' models do not allow: "):
        prune_model(model, parse_pruning("slimgpt-0.25"), [pico.tokens()])
    with pytest.raises(BadInput, match="do not allow"):
        plan_slicing(model)
    with pytest.raises(BadInput, match="do not allow"):
        check_whole_parts(model.config, "slimgpt-0.25")


@pytest.mark.parametrize("family", [name for name in pico.ALL_FAMILIES if not FAMILIES[name].whole_parts_refused])
def test_masked_equals_sliced_or_the_reason_is_told(family: str) -> None:
    model = pico.pico(family)
    head_dim = head_layout(model).head_dim
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.2)
    # Heads and channels where the class can have fewer heads, else channels alone.
    fewer_heads = FAMILIES[family].free_head_dim and family != "cohere"
    ratio = "0.45" if fewer_heads else "0.1"
    prune_model(model, parse_pruning(f"slimgpt-{ratio}"), [pico.tokens()], PruneConfig(slimgpt_first_layer=0.8))
    smaller = sliced(model)
    torch.testing.assert_close(_logits(smaller), _logits(model), atol=2e-5, rtol=0)
    assert head_layout(smaller).head_dim == head_dim
    assert (head_layout(smaller).heads < pico.HEADS) is fewer_heads
    assert smaller.num_parameters() < model.num_parameters()


def test_the_page_of_families_is_what_the_table_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m benchmarks.families"


@pytest.mark.parametrize("family", pico.ALL_FAMILIES)
def test_the_row_that_is_found_is_the_one_of_the_table(family: str) -> None:
    found, proofs = found_family(pico.pico(family).config)
    row = FAMILIES[family]
    # How biases are turned on is compared below; the others nobody can see in a class.
    apart = ("native_biases", "bias_flags", "stored_blocks", "packs", "whole_parts_refused", "stored_masks")
    for name in set(Family.__dataclass_fields__) - set(apart):
        assert getattr(found, name) == getattr(row, name), name
    for path in row.linears:
        assert found.bias_flag(path) == row.bias_flag(path), path
        assert (found.bias_route(path) == "none") is (row.bias_route(path) == "none"), path
    assert len(proofs) >= 3
    assert eval(row_text(family, found).partition(": ")[2].rstrip(","), {"Family": Family}) == found


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("mamba", {"hidden_size": 24, "num_hidden_layers": 3}, "no layer has attention heads"),
        ("codegen", {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4}, "are in no known order"),
    ],
)
def test_a_class_that_no_row_describes_is_told(
    kind: str, changes: dict[str, Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    AutoConfig.for_model(kind, vocab_size=64, **changes).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=told):
        inspect(tmp_path, family=True)
    assert not capsys.readouterr().out


def test_blocks_that_are_not_alike_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_one(config: Any) -> PreTrainedModel:
        model = pico.pico("llama")
        del blocks_of(model)[2].mlp.up_proj
        return model

    monkeypatch.setattr(inspection, "empty", without_one)
    with pytest.raises(BadInput, match="layer 2 has other linears than layer 0"):
        inspection._check_alike(pico.pico("llama").config, FAMILIES["llama"])


def test_inspect_prints_the_row_of_a_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pico.pico("phi3").config.save_pretrained(tmp_path)
    inspect(tmp_path, family=True)
    out, err = capsys.readouterr()
    assert out.startswith("'phi3': Family(\n    blocks='model.layers',\n    qkv=('self_attn.qkv_proj',),")
    assert "holds: rows of self_attn.qkv_proj lie by parts" in err


def test_words_tell_how_a_restored_model_is_kept() -> None:
    told = {family: carried_by(pico.pico(family).config) for family in ("llama", "mistral", "bloom", "phi3")}
    assert told["llama"] == "a stock checkpoint (own biases, with attention_bias turned on)"
    assert told["mistral"] == "a stock checkpoint (mistral written as llama)"
    assert told["bloom"] == "a stock checkpoint (own biases)"
    assert told["phi3"].startswith("the compensation file, for restorelcc.attach: no stock 'phi3' checkpoint")


def test_the_first_stage_asks_for_the_family_before_it_reads_texts(tmp_path: Path) -> None:
    AutoConfig.for_model("mamba", vocab_size=64, hidden_size=24, num_hidden_layers=3).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="model family 'mamba' is not supported: known are llama"):
        source_config("models.mine", str(tmp_path), None, tmp_path)


def test_a_check_of_a_family_is_not_passed_by_no_number() -> None:
    one = torch.ones(2)
    inspection._must("one is one", one, one)
    for found in (one + 1, one * torch.nan):
        with pytest.raises(BadInput, match="it does not hold that one is one"):
            inspection._must("one is one", found, one)
