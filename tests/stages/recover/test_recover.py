"""Every recovery method runs, keeps what it promises to keep, and is evaluated as what it is."""

from __future__ import annotations

import dataclasses
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from restorelcc.base.documents import read_json
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.recoveries import RECOVERIES
from restorelcc.base.tables import TEXT_SCORES, read_table, read_texts, write_texts
from restorelcc.compensation.file import read_compensation
from restorelcc.compensation.fold import fold
from restorelcc.compensation.hooks import compensated
from restorelcc.models.architectures import head_layout, out_projections, prunable_linears
from restorelcc.models.checkpoints import load_entry, load_model
from restorelcc.models.heads import HeadLayout
from restorelcc.stages.evaluate.stage import run_recovered
from restorelcc.stages.recover import RecoverConfig
from restorelcc.stages.recover.biases import random_heads
from restorelcc.stages.recover.result import Inputs
from restorelcc.stages.recover.stage import METHODS, run
from restorelcc.training.attached import site_linears
from restorelcc.training.closed_form import mean_inputs
from restorelcc.training.state import TrainingState, TrainingStates
from tests import pico
from tests.recovery_project import CELL, ENTRY, EVALUATE, evaluated_project, log_likelihoods, recovery_project

CONFIG = RecoverConfig(learning_rates=(0.01, 0.03), epochs=1, batch_size=8, max_tokens=16)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return evaluated_project(tmp_path_factory.mktemp("project"))


def _cell(name: str):
    return dataclasses.replace(CELL, recovery=name)


def test_every_name_has_a_method_and_a_line() -> None:
    assert set(METHODS) == set(RECOVERIES)
    assert not set(RECOVERIES) & {"pruned", "dense"}, "metrics of a method lie beside pruned.json"


@pytest.mark.parametrize("name", RECOVERIES)
def test_a_method_is_written_and_byte_identical_when_run_again(name: str, layout: Layout) -> None:
    cell = _cell(name)
    before = {path: path.read_bytes() for path in layout.pruned(cell).iterdir()}
    run(cell, CONFIG, ENTRY, layout)
    folder = layout.recovered(cell)
    first = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    document = read_json(folder / "recovery.json")
    assert document["recovery"] == name
    assert not any(layout.work.iterdir()), "no state of a finished training is left"
    run(cell, CONFIG, ENTRY, layout)
    assert first == {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert before == {path: path.read_bytes() for path in layout.pruned(cell).iterdir()}


def test_a_compensation_is_evaluated_as_one(layout: Layout) -> None:
    cell = _cell("meanshift")
    run(cell, CONFIG, ENTRY, layout)
    run_recovered(cell, EVALUATE, ENTRY, layout)
    metrics = read_json(layout.metrics(cell))
    assert (metrics["recovery"], metrics["pruning"], metrics["head_ratio"]) == ("meanshift", "wanda-0.5", None)
    assert metrics["perplexity"]["value"] > 0
    assert metrics["sparsity"] == pytest.approx(0.5)
    assert metrics["params_added"] == 2 * pico.LAYERS * pico.WIDTH
    assert metrics["params_trained"] == 0, "nothing is trained"
    assert read_json(layout.metrics(CELL))["perplexity"]["value"] != pytest.approx(metrics["perplexity"]["value"], 1e-3)
    model = load_model(layout.pruned(CELL), torch.float32, CPU)
    with compensated(model, read_compensation(layout.recovered(cell) / "compensation.safetensors")[0]):
        expected = log_likelihoods(model, read_texts(layout.corpus(CELL) / "heldout.parquet"))
    found = [row["log_likelihood"] for row in read_table(layout.text_scores(cell), TEXT_SCORES)]
    assert found == pytest.approx(expected, rel=1e-5)


def test_free_biases_reach_at_least_what_any_heads_reach(layout: Layout) -> None:
    config = CONFIG.model_copy(update={"epochs": 6, "learning_rates": (0.05,)})
    losses = {}
    for name in ("random", "bias"):
        run(_cell(name), config, ENTRY, layout)
        losses[name] = read_json(layout.recovered(_cell(name)) / "recovery.json")["training"]["runs"][0]["train_losses"]
    assert losses["bias"][-1] < losses["bias"][0]
    assert losses["random"][-1] < losses["random"][0]
    compensation, _ = read_compensation(layout.recovered(_cell("bias")) / "compensation.safetensors")
    assert {site.linear for site in compensation.sites} == {"self_attn.o_proj"}
    assert not compensation.compensates_heads


def test_random_heads_are_distinct_as_many_as_asked_and_differ_by_seed() -> None:
    heads = HeadLayout(5, 8, 4)
    drawn = random_heads(heads, 0.25, seed=1)
    assert len(drawn) == len(set(drawn)) == 10
    assert drawn == random_heads(heads, 0.25, seed=1) != random_heads(heads, 0.25, seed=2)
    assert all(layer < 5 and head < 8 for layer, head in drawn)


def test_the_mean_shift_gives_each_linear_its_dense_mean_output(layout: Layout) -> None:
    run(_cell("meanshift"), CONFIG, ENTRY, layout)
    compensation, _ = read_compensation(layout.recovered(_cell("meanshift")) / "compensation.safetensors")
    dense, pruned = (load_model(f, torch.float32, CPU) for f in (layout.dense(CELL), layout.pruned(CELL)))
    assert len(compensation.sites) == 2 * pico.LAYERS
    # Whatever the inputs are: dense W x + 0 and pruned W x + b agree on their mean.
    batches = Inputs(_cell("meanshift"), CONFIG, ENTRY, layout, None).calibration()  # type: ignore[arg-type]
    linears = site_linears(dense, ("o", "down"))
    means = mean_inputs(dense, linears, batches, "test")
    sparse = site_linears(pruned, ("o", "down"))
    for site, bias in compensation.sites.items():
        name = f"{site.layer}.{site.linear}"
        mean = means[name].float()
        torch.testing.assert_close(sparse[name].weight @ mean + bias, linears[name].weight @ mean)
        assert bias.abs().max() > 0


@pytest.mark.parametrize("name", ["meanshift", "eora", "reconstruct-distilled"])
def test_the_dense_model_is_gone_when_the_pruned_one_is_loaded(
    name: str, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a module refers to itself, as those do that accelerate has spread over devices."""
    loaded: list[weakref.ref] = []

    def load(*arguments: Any, **keywords: Any) -> PreTrainedModel:
        assert not any(each() is not None for each in loaded), "one model at a time"
        network = load_entry(*arguments, **keywords)
        network.circle = {"of": network}
        loaded.append(weakref.ref(network))
        return network

    monkeypatch.setattr("restorelcc.stages.recover.result.load_entry", load)
    run(_cell(name), CONFIG, ENTRY, layout)
    assert len(loaded) == 2


def test_processes_that_share_a_folder_have_a_copy_each(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two machines there are two processes of local rank 0."""
    inputs = Inputs(_cell("masked"), CONFIG, ENTRY, layout, TrainingStates(layout.work / "states"))
    first = inputs.kept()
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("RANK", "1")
    second = inputs.kept()
    assert (first.folder / "model.safetensors").is_file()
    assert second.folder != first.folder
    shutil.rmtree(layout.work / "states")


def test_mean_inputs_are_those_of_all_tokens() -> None:
    model = pico.pico()
    seen: list[torch.Tensor] = []
    projection = out_projections(model)[1]
    handle = projection.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].flatten(0, 1)))
    batches = [pico.tokens(3, 7), pico.tokens(2, 5, seed=1)]
    means = mean_inputs(model, site_linears(model, ("o",)), batches, "test")
    handle.remove()
    torch.testing.assert_close(means["1.self_attn.o_proj"].float(), torch.cat(seen).mean(dim=0))


def test_a_method_of_another_pruned_model_is_refused(tmp_path: Path) -> None:
    layout = recovery_project(tmp_path)
    run(_cell("meanshift"), CONFIG, ENTRY, layout)
    model = load_model(layout.pruned(CELL), torch.float32, CPU)
    next(prunable_linears(model))[2].weight[0, 0] += 1.0
    model.save_pretrained(layout.pruned(CELL))
    with pytest.raises(BadInput, match="made for another pruned model"):
        run_recovered(_cell("meanshift"), EVALUATE, ENTRY, layout)
    with pytest.raises(BadInput, match="components were extracted for another pruned model"):
        run(_cell("random"), CONFIG, ENTRY, layout)


def test_zeros_stay_zeros_when_biases_of_a_method_are_folded(layout: Layout) -> None:
    run(_cell("ffn"), CONFIG, ENTRY, layout)
    model = load_model(layout.pruned(CELL), torch.float32, CPU)
    before = {name: linear.weight.clone() for _, name, linear in prunable_linears(model)}
    compensation, _ = read_compensation(layout.recovered(_cell("ffn")) / "compensation.safetensors")
    fold(model, compensation)
    assert all(torch.equal(linear.weight, before[name]) for _, name, linear in prunable_linears(model))
    assert head_layout(model).layers == pico.LAYERS


def test_calibration_texts_end_where_the_models_context_does(tmp_path: Path) -> None:
    layout = recovery_project(tmp_path, max_position_embeddings=64)
    write_texts(layout.corpus(CELL) / "calibration.parquet", [" ".join(f"w{3 + n % 60}" for n in range(200))])
    batches = Inputs(_cell("meanshift"), CONFIG, ENTRY, layout, None).calibration()  # type: ignore[arg-type]
    assert [tuple(batch.shape) for batch in batches] == [(1, 64)]


@pytest.mark.parametrize(
    ("name", "first", "second"), [("reconstruct", "block-0", "block-1"), ("masked-compensated", "weights", "recover-")]
)
def test_a_method_killed_in_its_second_training_goes_on_there_and_ends_the_same(
    name: str, first: str, second: str, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.model_copy(update={"learning_rates": (0.01,), "examples": 8, "epochs": 2})
    cell, save, saved = _cell(name), TrainingState.save, list[str]()
    folder = layout.recovered(cell)
    run(cell, config, ENTRY, layout)
    expected = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    shutil.rmtree(folder)

    def save_and_tell(self: TrainingState, *arguments: object) -> None:
        save(self, *arguments)  # type: ignore[arg-type]
        saved.append(self.path.parent.name)
        if dies and saved[-1].startswith(second):
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingState, "save", save_and_tell)
    dies = True
    with pytest.raises(KeyboardInterrupt):
        run(cell, config, ENTRY, layout)
    assert first in saved and not folder.exists() and any(layout.work.iterdir())
    dies = False
    saved.clear()
    run(cell, config, ENTRY, layout)
    assert saved and first not in saved, "what was trained before is not trained again"
    assert expected == {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert not any(layout.work.iterdir())


def test_one_pair_is_too_few_for_reconstruction(layout: Layout) -> None:
    with pytest.raises(BadInput, match="at least 2 training pairs"):
        run(_cell("reconstruct"), CONFIG.model_copy(update={"examples": 1}), ENTRY, layout)
