"""The catalogue of models: presets, settings of one model, bad input, and `plan`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig
from typer.testing import CliRunner

from restorelcc.base.cell import Cell
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import ModelEntry
from restorelcc.cli.app import app
from restorelcc.pipeline.params import hidden_changes, load_params
from restorelcc.pipeline.plan_costs import START
from restorelcc.pipeline.plan_work import task_items
from restorelcc.release.export.cell import cell_options
from restorelcc.stages.compensate import CompensateConfig
from restorelcc.stages.corpus import CorpusConfig
from restorelcc.stages.evaluate import EvaluateConfig
from restorelcc.stages.probe import ProbeConfig
from restorelcc.stages.prune import PruneConfig
from restorelcc.stages.recover import RecoverConfig
from tests.dag import ROOT
from tests.pico import write_smollm2_config

SHIPPED = ROOT / "params.yaml"
PAPER_MODELS = {"llama-7b", "llama-13b", "llama-30b", "llama-2-7b", "llama-2-13b", "llama-3-8b", "vicuna-7b"} | {
    "tulu-2-7b",
    "qwen3-8b",
    "qwen3-14b",
}
GIB = 2**30


def test_the_papers_models_are_there_with_its_settings() -> None:
    params = load_params(SHIPPED)
    assert PAPER_MODELS | {"smollm2-135m", "qwen2-5-05b", "llama-3-2-1b", "tiny"} | {"smollm2-135m-pip"} == set(
        params.models
    )
    for alias in set(params.models) - {"tiny", "smollm2-135m-pip"}:
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


# What the embedded chain computed with when its tuning stood in the sections themselves.
EMBEDDED = {
    "corpus": {"seed": 42, "calibration": 128, "train": 2000, "valid": 200, "contrast": 1000, "encoder": "auto"}
    | {
        "microworld": {"seed": 42, "people": 72, "documents": 40000, "test_items": 400, "dev_items": 120}
        | {"train_pairs": 2000, "valid_pairs": 400, "contrast_pairs": 1000}
    },
    "dense": {
        "architecture": {"layers": 4, "heads": 16, "kv_heads": 4, "head_dim": 8, "width": 64, "ffn_width": 96}
        | {"context": 64, "common": 0.7},
        "pretrain": {"seed": 0, "target_mean": 0.93, "target_min": 0.85, "floor": 0.9, "max_steps": 1500},
    },
    "prune": {"samples": 256, "sequence_length": 2048, "token_budget": 4096, "seed": 42, "damping": 0.01}
    | {"slimgpt_first_layer": 1.0, "allocation": "uniform", "external": {}},
    "capture": {"max_tokens": 1024, "token_budget": "auto"},
    "extract": {"solver": "auto"},
    "probe": {"score": "paper", "scores": ["paper", "relational", "gradient", "random", "mse", "kl", "energy"]}
    | {"components": 1, "solver": "auto", "steps": 200, "learning_rate": 0.01, "heldout_share": 0.3, "seed": 42},
    "compensate": {"learning_rates": [0.03], "epochs": 3, "batch_size": 16, "max_tokens": 1024, "initial_std": 0.001}
    | {"max_gradient_norm": 1.0, "seed": 42},
    "recover": {"learning_rates": [0.003, 0.01, 0.03, 0.1], "epochs": 3, "batch_size": 16, "max_tokens": 1024}
    | {"seed": 42, "head_ratio": 0.25, "rank": 8, "calibration_tokens": 2048},
    "evaluate": {"batch_size": "auto", "limit": None, "perplexity_tokens": 2048, "bootstrap_samples": 10000, "seed": 42}
    | {
        "datasets": None,
        "sanity_gate": True,
        "generation": {"prompts": 16, "prompt_tokens": 16, "new_tokens": 48, "temperature": 1.0}
        | {"repetition_limit": 0.5, "heldout_tokens": 1024},
    },
}


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_chain_computes_with_its_own_settings(name: str) -> None:
    params = load_params(SHIPPED)
    assert params.section("tiny", name) == type(getattr(params, name)).model_validate(EMBEDDED[name])


@pytest.mark.parametrize("name", sorted(set(EMBEDDED) - {"dense"}))
def test_what_is_shipped_is_the_default_of_every_section(name: str) -> None:
    section = getattr(load_params(SHIPPED), name)
    assert section == type(section)()


def test_the_defaults_are_the_papers() -> None:
    train = CompensateConfig()
    assert (train.learning_rates, train.epochs, train.batch_size, train.seed) == ((1e-3,), 3, 8, 42)
    assert (train.initial_std, train.start, train.sites, train.parts) == (1e-3, "normal", ("o",), ("beta", "bias"))
    others = RecoverConfig()
    assert (others.learning_rates, others.epochs, others.batch_size) == ((1e-3,), 3, 8)
    assert (PruneConfig().samples, PruneConfig().sequence_length) == (128, 2048)
    assert (CorpusConfig().calibration, CorpusConfig().train, CorpusConfig().contrast) == (128, 2000, 1000)
    probe = ProbeConfig()
    assert (probe.score, probe.steps, probe.learning_rate, probe.heldout_share) == ("paper", 200, 0.01, 0.3)
    assert (probe.components, EvaluateConfig().perplexity_tokens) == (1, 2048)


def test_an_export_records_what_the_model_ran_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = load_params(SHIPPED)
    for alias, samples, rates in (("tiny", 256, [0.03]), ("llama-7b", 128, [1e-3])):
        config = cell_options(Cell(alias, "wanda-0.5", "0.25"), params.section, Layout(tmp_path)).config
        assert (config["prune"]["samples"], config["compensate"]["learning_rates"]) == (samples, rates)
    known = {"corpus", "probe", "compensate"}

    def section(alias: str, name: str) -> object:
        return params.section(alias, name) if name in known else None

    options = cell_options(Cell("tiny", "wanda-0.5", "0.25"), section, Layout(tmp_path))
    assert (set(options.config), options.unknown) == (known, ("prune", "capture", "extract"))
    assert "leaves out the settings of prune, capture, extract" in capsys.readouterr().err


def test_a_section_counts_where_the_entry_says_nothing() -> None:
    params = load_params(SHIPPED, ("compensate.epochs=7", "compensate.distill={weight: 0.4}"))
    for alias in ("tiny", "llama-7b"):
        train = params.section(alias, "compensate")
        assert (train.epochs, train.distill and train.distill.weight) == (7, 0.4)
    assert params.section("tiny", "compensate").batch_size == 16


def test_what_the_command_line_sets_counts_for_models_with_a_value_of_their_own() -> None:
    entry = "models.tiny.settings={compensate: {learning_rates: [0.03], distill: {weight: 0.4, top_k: 8}}}"
    params = load_params(SHIPPED, (entry, "compensate.learning_rates=[0.5]", "compensate.distill.top_k=9"))
    train = params.section("tiny", "compensate")
    assert train.learning_rates == (0.5,)
    assert train.distill is not None
    assert (train.distill.weight, train.distill.top_k) == (0.4, 9)
    params = load_params(SHIPPED, ("models.llama-7b.sequence_length=512", "prune.sequence_length=64"))
    lengths = [params.section("llama-7b", "prune").sequence_length]
    lengths.append(params.section("llama-7b", "evaluate").perplexity_tokens)
    assert lengths == [64, 512]
    params = load_params(SHIPPED, ("prune.samples=9", "models.tiny.settings.prune.samples=8"))
    assert params.section("tiny", "prune").samples == 8, "the last one counts"


def test_what_the_command_line_sets_goes_before_a_budget_and_a_preset() -> None:
    """`smollm2-135m-pip` has the budget `quick` and the preset `package`."""
    name = "smollm2-135m-pip"
    assert load_params(SHIPPED).section(name, "prune").samples == 16
    params = load_params(
        SHIPPED,
        ("prune.samples=64", "compensate.epochs=5", "evaluate.generation.prompts=3", "evaluate.datasets=/data"),
    )
    assert params.section(name, "prune").samples == 64
    assert params.section(name, "prune").sequence_length == 512, "the rest of the budget holds"
    assert params.section(name, "compensate").epochs == 5
    evaluate = params.section(name, "evaluate")
    assert (evaluate.generation.prompts, evaluate.generation.new_tokens, evaluate.limit) == (3, 24, 200)
    assert evaluate.datasets == "/data"


def test_check_names_the_budget_that_hides_a_section(tmp_path: Path) -> None:
    content = yaml.safe_load(SHIPPED.read_text())
    content["grid"]["model"], content["prune"]["samples"] = ["smollm2-135m-pip"], 99
    params = load_params(_written(tmp_path, content))
    assert hidden_changes(params) == [
        "prune.samples is 99 and does not count for smollm2-135m-pip, whose budget quick has 16: give "
        "models.smollm2-135m-pip.settings.prune.samples instead"
    ]


def _written(folder: Path, content: dict) -> Path:
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    return folder / "params.yaml"


@pytest.mark.parametrize(
    ("changes", "notes"),
    [
        ({}, []),
        ({"compensate": {"epochs": 7}}, []),
        ({"compensate": {"batch_size": 16}}, []),  # the same as the entry's own
        (
            {"compensate": {"learning_rates": [0.01]}},
            ["compensate.learning_rates is [0.01] and does not count for tiny, whose entry in `models` has [0.03]"],
        ),
        (
            {"prune": {"samples": 9}, "recover": {"batch_size": 4}},
            [
                "prune.samples is 9 and does not count for tiny, whose entry in `models` has 256",
                "recover.batch_size is 4 and does not count for tiny, whose entry in `models` has 16",
            ],
        ),
    ],
    ids=str,
)
def test_check_says_what_a_model_hides(changes: dict, notes: list[str], tmp_path: Path) -> None:
    content = yaml.safe_load(SHIPPED.read_text())
    for section, values in changes.items():
        content[section] |= values
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    done = CliRunner().invoke(app, ["check", "--params", str(tmp_path / "params.yaml")])
    assert done.exit_code == 0
    said = [line for line in done.stderr.splitlines() if "note" in line]
    assert said == [f"restorelcc: note: {note}: change it there" for note in notes]


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
        ("models.llama-7b.data.columns={questoin: q}", r"'questoin' is not a role"),
        ("models.llama-7b.data.template='{prompt}'", r"has to hold \{instruction\} or \{input\}"),
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


def test_a_plan_counts_every_training_and_the_pairs_that_it_takes() -> None:
    grid = ["--set", "grid.recovery=[bias]", "--set", "grid.head_ratio=[0.25]"]

    def seconds(*changes: str) -> dict[str, float]:
        plan = _planned("--model", "tiny", *grid, *(part for change in changes for part in ("--set", change)))
        return {
            row["stage"]: (row["seconds"] / row["runs"] - START[row["stage"].split("_")[0]]) * plan["flops_per_second"]
            for row in plan["stages"]
        }

    one, auto = seconds(), seconds("grid.head_ratio=[auto]")
    assert auto["compensate"] == pytest.approx(5 * one["compensate"], rel=0.25), "five ratios are tried"
    assert auto["evaluate_restored"] == pytest.approx(one["evaluate_restored"], rel=0.25)
    both = seconds("grid.head_ratio=[0.25, auto]")
    assert both["compensate"] == pytest.approx(3 * one["compensate"], rel=0.25)
    few = seconds("compensate.examples=10", "recover.examples=10")
    assert few["compensate"] < 0.5 * one["compensate"] and few["recover"] < 0.5 * one["recover"]


def test_a_plan_says_how_well_the_items_tell_an_accuracy(tmp_path: Path) -> None:
    """At one half an accuracy of n items has a standard error of 1 / (2 sqrt(n))."""
    write_smollm2_config(tmp_path)
    source = ["--set", f"models.smollm2-135m-pip.source={tmp_path}", "--pruning", "wanda-0.5"]
    known = _planned("--model", "smollm2-135m-pip", *source)["accuracy"]
    assert (known["tasks"], known["items"]) == (3, 600)
    assert known["standard_error"] == pytest.approx((3 * 0.25 / 200) ** 0.5 / 3)
    said = CliRunner().invoke(app, ["plan", "--params", str(SHIPPED), "--model", "smollm2-135m-pip", *source]).output
    assert (
        _planned("--model", "smollm2-135m-pip", *source, "--set", "models.smollm2-135m-pip.tasks=[own]")["accuracy"]
        is None
    )
    embedded = _planned("--model", "tiny")["accuracy"]
    assert (embedded["tasks"], embedded["items"]) == (5, 5 * load_params(SHIPPED).corpus.microworld.test_items)
    for changes, tasks, items in (
        (["evaluate.limit=50"], 5, 250),
        (["models.tiny.tasks=[{name: embedded, limit: 20}]"], 5, 100),
        (["models.tiny.tasks=[arc_easy]", "evaluate.limit=50"], 6, 300),
        (["models.tiny.tasks=[embedded, arc_easy]", "evaluate.limit=50"], 6, 300),
    ):
        known = _planned("--model", "tiny", *(part for each in changes for part in ("--set", each)))["accuracy"]
        assert (known["tasks"], known["items"]) == (tasks, items), changes
    assert "over 600 items of 3 tasks has a standard error of up to 2.0 points" in " ".join(said.split())


def test_a_plan_is_of_the_models_own_settings() -> None:
    shape = "{dense: {architecture: {width: 96, layers: 3}}}"
    own = _planned("--model", "tiny", "--set", f"models.tiny.settings={shape}")
    assert (own["layers"], _planned("--model", "tiny")["layers"]) == (3, 4)


def test_what_is_set_goes_over_a_budget_in_any_order() -> None:
    budget, own = "models.smollm2-135m-pip.budget=quick", "prune.samples=64"
    for overrides in ((budget, own), (own, budget)):
        assert load_params(SHIPPED, overrides).section("smollm2-135m-pip", "prune").samples == 64
    entry = "models.smollm2-135m-pip={source: me/model, data: {calibration: c4, instructions: alpaca, heldout: c4}}"
    for overrides in ((entry, budget), (budget, entry)):
        assert load_params(SHIPPED, overrides).models["smollm2-135m-pip"].budget == "quick"
    # Of two settings the last one counts.
    mine = "models.smollm2-135m-pip.settings.prune.samples=8"
    for overrides, samples in (((own, mine), 8), ((mine, own), 64)):
        assert load_params(SHIPPED, overrides).section("smollm2-135m-pip", "prune").samples == samples


@pytest.mark.parametrize("more", ["", "budget: quick, ", "sequence_length: 64, "])
def test_settings_that_are_none_are_one_sentence_whatever_is_set(more: str) -> None:
    entry = f"models.mine={{source: me/model, {more}settings: small}}"
    for override in ("prune.samples=8", "prune.sequence_length=32"):
        with pytest.raises(BadInput, match=r"models\.mine\.settings is 'small'"):
            load_params(SHIPPED, (entry, override))


def test_a_plan_of_the_embedded_model_needs_no_data(tmp_path: Path) -> None:
    plan = _planned("--model", "tiny")
    assert plan["source"] == "microworld"
    assert {row["stage"] for row in plan["stages"]} >= {"corpus", "dense", "prune", "compensate", "evaluate_restored"}
    assert all(300 * 2**20 < row["memory"] < GIB for row in plan["stages"])


def test_a_plan_counts_tied_embeddings_once_and_says_what_each_budget_takes(tmp_path: Path) -> None:
    write_smollm2_config(tmp_path)
    source = ["--set", f"models.smollm2-135m-pip.source={tmp_path}", "--pruning", "wanda-0.5"]
    plan = _planned("--model", "smollm2-135m-pip", *source)
    assert plan["parameters"] == 134_515_008
    stages = {row["stage"]: row for row in plan["stages"]}
    # Measured on this model: 1.8 GB for a training step of 600 tokens.
    assert stages["compensate"]["memory"] == pytest.approx(1.9e9, rel=0.3)
    took = {name: each["seconds"] for name, each in plan["budgets"].items()}
    assert took["quick"] * 5 < took["day"] < took["full"]
    # With the budget of the entry itself the plan is that of the budget.
    assert took["quick"] == pytest.approx(sum(row["seconds"] for row in plan["stages"]), rel=1e-6)


@pytest.mark.parametrize(("times", "told"), [(3.4, True), (1.2, False), (0.01, False)])
def test_a_plan_tells_of_a_processor_that_is_faster_in_bfloat16(
    times: float, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rate(_device: torch.device, dtype: torch.dtype, *_: object, **__: object) -> float:
        return 1e11 * (times if dtype == torch.bfloat16 else 1.0)

    monkeypatch.setattr("restorelcc.pipeline.plan_rate.matmul_rate", rate)
    options = ("plan", "--params", str(SHIPPED), "--model", "tiny")
    said = " ".join(CliRunner().invoke(app, options).output.split())
    sentence = "multiplies matrices 3.4 times as fast: with `dtype: bfloat16` under models.tiny, all stages compute in"
    assert (sentence in said, "bfloat16" in said) == (told, told)
    assert _planned("--model", "tiny")["bfloat16_speedup"] == pytest.approx(times)
    own = _planned("--model", "tiny", "--set", "models.tiny.dtype=bfloat16")
    assert (own["dtype"], own["bfloat16_speedup"]) == ("bfloat16", None)


def test_a_plan_knows_what_rivals_and_a_models_own_words_cost(tmp_path: Path) -> None:
    write_smollm2_config(tmp_path)
    entry = f"models.smollm2-135m-pip.source={tmp_path}"

    def work(*changes: str) -> dict[str, float]:
        """Operations of each stage, whatever this machine's speed."""
        options = [part for change in (entry, *changes) for part in ("--set", change)]
        plan = _planned("--model", "smollm2-135m-pip", "--pruning", "wanda-0.5", *options)
        return {
            row["stage"]: (row["seconds"] / row["runs"] - START[row["stage"].split("_")[0]]) * plan["flops_per_second"]
            for row in plan["stages"]
        }

    plain, alone = work(), work("evaluate.rivals=[]")
    assert alone["evaluate_dense"] == pytest.approx(plain["evaluate_pruned"], rel=0.3)
    assert plain["evaluate_dense"] == pytest.approx(3 * alone["evaluate_dense"], rel=0.3)
    assert plain["corpus"] == 0
    # Measured: 24 answers of 64 tokens took 18 s of a core that multiplies matrices at 82 GFLOP/s.
    written = "models.smollm2-135m-pip.data.calibration=self"
    sizes = "models.smollm2-135m-pip.settings.corpus={calibration: 24, own_words: {new_tokens: 64}}"
    assert work(written, sizes)["corpus"] == pytest.approx(18 * 61e9, rel=0.3)


def test_items_of_tasks_are_counted_with_their_limits() -> None:
    entry = ModelEntry(source="m", tasks=("paper-7", {"name": "hellaswag", "limit": 2000}))
    assert task_items(entry, None)[0] == 3270 + 277 + 2000 + 1267 + 2376 + 1172 + 500
    assert task_items(entry, 200)[0] == 6 * 200 + 2000
    assert task_items(ModelEntry(source="m", tasks=("arc_easy", "own")), 100) == (200, 14_000, 3_800)
