"""The catalogue of models: presets, settings of one model, bad input, and `plan`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig
from typer.testing import CliRunner

from restorelcc.cli import app
from restorelcc.core.errors import BadInput
from restorelcc.params import load_params
from tests.dag import ROOT

SHIPPED = ROOT / "params.yaml"
PAPER_MODELS = {"llama-7b", "llama-13b", "llama-30b", "llama-2-7b", "llama-2-13b", "llama-3-8b", "vicuna-7b"} | {
    "tulu-2-7b",
    "qwen3-8b",
    "qwen3-14b",
}
GIB = 2**30


def test_the_papers_models_are_there_with_its_settings() -> None:
    params = load_params(SHIPPED)
    assert PAPER_MODELS | {"smollm2-135m", "qwen2-5-05b", "llama-3-2-1b", "tiny"} == set(params.models)
    for alias in set(params.models) - {"tiny"}:
        entry = params.models[alias]
        assert entry.data is not None
        assert (entry.data.calibration, entry.data.instructions, entry.data.heldout) == ("c4", "alpaca", "wikitext")
        assert entry.tasks == ("paper-7",)
        prune, corpus = params.section(alias, "prune"), params.section(alias, "corpus")
        assert (prune.samples, prune.sequence_length, corpus.calibration) == (128, 2048, 128)
        assert (corpus.train, corpus.contrast) == (2000, 1000)
        train = params.section(alias, "compensate")
        assert (train.learning_rates, train.epochs, train.batch_size) == ((1e-3,), 3, 8)
        assert params.section(alias, "evaluate").perplexity_tokens == 2048
    assert params.section("tiny", "prune") == params.prune, "the embedded model's own settings stay as they are"


def test_what_an_entry_says_goes_before_its_preset() -> None:
    over = "models.llama-7b.settings={compensate: {epochs: 1}}", "models.llama-7b.data={calibration: mine.txt}"
    params = load_params(SHIPPED, (*over, "models.llama-7b.sequence_length=512"))
    entry = params.models["llama-7b"]
    assert entry.data is not None
    assert (entry.data.calibration, entry.data.instructions) == ("mine.txt", "alpaca")
    assert (params.section("llama-7b", "compensate").epochs, params.section("llama-7b", "compensate").batch_size) == (
        1,
        8,
    )
    assert params.section("llama-7b", "prune").sequence_length == 512


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("models.llama-7b.preset=papr", r"models\.llama-7b\.preset is 'papr'"),
        (
            "models.llama-7b.settings={prnue: {}}",
            r"llama-7b\.settings 'prnue' is unknown: did you mean 'prune'",
        ),
        (
            "models.llama-7b.settings={prune: {sample: 3}}",
            r"'models\.llama-7b\.settings\.prune\.sample' is unknown: did you mean",
        ),
        ("models.llama-7b.settings={prune: {samples: 0}}", r"models\.llama-7b\.settings\.prune\.samples is 0"),
        ("models.llama-7b.data.columns={questoin: q}", r"'questoin' is no role"),
        ("models.llama-7b.data.template='{prompt}'", r"may hold \{instruction\} and \{input\} only"),
        ("models.llama-7b.max_memory={cpu: 1GiB}", r"add device_map"),
        ("models.llama-7b.device_map=everywhere", r"device_map is 'everywhere'"),
    ],
)
def test_bad_entries_are_one_sentence(override: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        load_params(SHIPPED, (override,))
    assert "\n" not in str(caught.value)


def _planned(*arguments: str) -> dict:
    done = CliRunner().invoke(app, ["plan", "--params", str(SHIPPED), "--json", *arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_plan_of_a_7b_model_is_sane_and_loads_nothing(tmp_path: Path) -> None:
    shape = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    LlamaConfig(**shape, vocab_size=32_000, dtype="float16").save_pretrained(tmp_path)
    source = ["--set", f"models.llama-7b.source={tmp_path}", "--pruning", "sparsegpt-2of4"]
    plan = _planned("--model", "llama-7b", "--device", "cuda", *source)
    assert plan["parameters"] == 6_738_415_616
    stages = {row["stage"]: row for row in plan["stages"]}
    weights = 2 * plan["parameters"]
    for stage in ("capture_dense", "compensate", "evaluate_pruned"):
        assert weights < stages[stage]["gpu_memory"] < 4 * weights, stage
    assert stages["prune"]["gpu_memory"] < weights + 2 * GIB, "block by block"
    assert stages["prune"]["disk"] == pytest.approx(weights, rel=0.01)
    assert stages["capture_dense"]["disk"] == 1000 * 4096 * 4 * 3 * 32
    assert 60 < sum(row["seconds"] for row in plan["stages"]) < 24 * 3600
    assert "torch" in sys.modules and not list(tmp_path.glob("*.safetensors"))


def test_a_plan_of_the_embedded_model_needs_no_data(tmp_path: Path) -> None:
    plan = _planned("--model", "tiny")
    assert plan["source"] == "microworld"
    assert {row["stage"] for row in plan["stages"]} >= {"corpus", "dense", "prune", "compensate", "evaluate_restored"}
    assert all(300 * 2**20 < row["memory"] < GIB for row in plan["stages"])
