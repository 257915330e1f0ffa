"""The engine table against the engines that are installed, and what is said of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from restorelcc.compensation.compensation import Compensation, Site
from restorelcc.models.architectures import FAMILIES, blocks_of, linear_of
from restorelcc.models.tensor_bytes import tensor_bytes
from restorelcc.release.engines.report import biased_parts, engine_report
from restorelcc.release.engines.table import ENGINES, TRANSFORMERS
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from tests import pico
from tests.release.export.restored import pair_of, pruned_model, write_pair


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_the_row_of_transformers_is_what_the_installed_classes_do(family: str, tmp_path: Path) -> None:
    row, paths = TRANSFORMERS.rows[family], FAMILIES[family]
    parts = {"qkv": paths.qkv, "out": (paths.out_proj,), "ffn": (*paths.ffn_in, paths.ffn_out)}
    flags = dict.fromkeys(paths.bias_flags, True)
    model = pico.pico(family, **flags)
    for part, linears in parts.items():
        has = {linear_of(blocks_of(model)[0], path).bias is not None for path in linears}
        assert has == {getattr(row, part) == "read"}, part


def test_every_engine_has_a_source_for_every_row() -> None:
    for engine in ENGINES:
        for kind, row in engine.rows.items():
            assert kind in FAMILIES
            assert row.source
            assert {row.qkv, row.out, row.ffn} <= {"read", "dropped", "refused"}
        assert set(engine.rows) >= {"llama", "qwen3", "gemma2", "gpt_neox", "opt", "phi"}


def _of(report: dict, name: str) -> dict:
    return next(engine for engine in report["engines"] if engine["engine"] == name)


def test_a_restored_mistral_is_read_everywhere_as_llama(tmp_path: Path) -> None:
    pair = pair_of(tmp_path, "mistral")
    export_checkpoint(pair.pruned, pair.compensation, tmp_path / "out", ExportOptions())
    report = engine_report(tmp_path / "out", load=True)
    assert (report["model_type"], report["biases"]) == ("llama", ["out"])
    assert {engine["bias"] for engine in report["engines"]} == {"read"}
    assert "loads as LlamaForCausalLM with every tensor read" in _of(report, "transformers")["tried"]
    assert all("no gain" in engine["zeros"] for engine in report["engines"])


def test_a_restored_qwen3_is_warned_of(tmp_path: Path) -> None:
    pair = pair_of(tmp_path, "qwen3")
    export_checkpoint(pair.pruned, pair.compensation, tmp_path / "out", ExportOptions())
    report = engine_report(tmp_path / "out")
    assert _of(report, "transformers")["bias"] == "read"
    assert _of(report, "transformers")["tried"].startswith("not tried: --try")
    assert "out-projection: dropped; it would compute without the compensation, silently" in _of(report, "vLLM")["bias"]
    assert _of(report, "SGLang")["bias"] == "read"
    assert _of(report, "llama.cpp")["loads"].startswith("no:")


def test_biases_of_channels_are_told_apart(tmp_path: Path) -> None:
    model = pruned_model("llama")
    compensation = Compensation(torch.zeros(3, 4, 6), {Site(0, "mlp.down_proj"): torch.ones(16)})
    pair = write_pair(tmp_path, model, compensation)
    export_checkpoint(pair.pruned, pair.compensation, tmp_path / "out", ExportOptions())
    report = engine_report(tmp_path / "out")
    assert report["biases"] == ["ffn"]
    assert "FFN: dropped" in _of(report, "SGLang")["bias"]
    assert biased_parts(FAMILIES["llama"], tensor_bytes(pair.pruned)) == {"qkv": False, "out": False, "ffn": False}
    assert _of(engine_report(pair.pruned), "vLLM")["bias"] == "there is none to read"


def test_biases_beside_the_language_model_are_not_its_own() -> None:
    """A vision tower has linears of the same names."""
    family, one = FAMILIES["llama"], SimpleNamespace(nonzero=lambda: np.ones(4, bool))
    for name, found in (
        ("model.layers.0.self_attn.q_proj.bias", True),
        ("layers.0.self_attn.q_proj.bias", True),
        ("vision_tower.encoder.layers.0.self_attn.q_proj.bias", False),
    ):
        assert biased_parts(family, {name: one})["qkv"] is found


def test_a_bias_that_transformers_would_drop_is_found_by_trying(tmp_path: Path) -> None:
    from restorelcc.compensation.fold import fold

    model = pico.pico("mistral")
    fold(model, torch.ones(3, 4, 6))
    model.save_pretrained(tmp_path)
    pico.word_tokenizer().save_pretrained(tmp_path)
    report = _of(engine_report(tmp_path, load=True), "transformers")
    assert "dropped" in report["bias"]
    assert "unexpected keys" in report["tried"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path).model.layers[0].self_attn.o_proj.bias is None
