"""No change is a candidate of every training, and what it leaves goes through every later step."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from restorelcc.base.cell import Cell
from restorelcc.base.documents import json_text, read_json
from restorelcc.base.layout import Layout
from restorelcc.base.tables import EXAMPLES, write_table
from restorelcc.cli.export import say_what_was_written
from restorelcc.compensation.file import read_compensation
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.models.tensors import read_all_tensors
from restorelcc.release.export.apply import apply_compensation, remove_compensation
from restorelcc.release.export.cell import cell_options, cell_parts, export_cell
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from restorelcc.release.shown import described
from restorelcc.release.verify.verify import subject, verify
from restorelcc.stages.compensate import CompensateConfig
from restorelcc.stages.compensate.stage import run
from restorelcc.stages.evaluate.stage import run_recovered, run_restored
from restorelcc.stages.recover import RecoverConfig, biases
from restorelcc.stages.recover.stage import run as run_method
from restorelcc.stages.report import ReportConfig
from restorelcc.stages.report.stage import run as run_report
from restorelcc.training.best import Choice, Start, fit_best
from restorelcc.training.config import FitConfig
from restorelcc.training.loop import Diverged, Fitted, Task, fit
from restorelcc.training.state import TrainingState, TrainingStates
from tests import pico
from tests.recovery_project import CELL, ENTRY, EVALUATE, evaluated_project, words

RESTORED = Cell(CELL.model, CELL.pruning, "0.5")
SETTINGS = {"learning_rates": (0.02, 0.05), "epochs": 2, "batch_size": 8, "max_tokens": 16}
CONFIG = CompensateConfig.model_validate(SETTINGS)
SAID = "no candidate beat the pruned model on the validation pairs"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """What the training pairs teach is wrong on the validation pairs."""
    layout = evaluated_project(tmp_path_factory.mktemp("project"))
    weight_VM = pico.pico().get_output_embeddings().weight
    opposite = int((weight_VM[3:-1] @ weight_VM[9]).argmin()) + 3
    for name, word in (("train", "w9"), ("valid", f"w{opposite}")):
        rows = [{"task": "t", "question": words(4, number), "response": f"{word} {word}"} for number in range(24)]
        write_table(layout.corpus(CELL) / f"{name}.parquet", rows, EXAMPLES)
    return layout


@pytest.mark.parametrize(
    ("start", "at", "best", "candidate", "left"),
    [  # the validation loss is |w - best|, training goes from `at` to about at + 1
        ("unchanged", 5.0, 6.0, "training", 6.0),
        ("unchanged", 5.0, 4.0, "no change", 5.0),
        ("random", 0.1, 1.1, "training", 1.1),
        ("random", 0.1, -1.0, "no change", 0.0),
        ("random", 0.1, 0.1, "no change", 0.0),  # what is drawn at random is no candidate
        ("guess", 3.0, 4.0, "training", 4.0),
        ("guess", 3.0, 3.0, "start", 3.0),
        ("guess", 3.0, -1.0, "no change", 0.0),
    ],
)
def test_the_least_validation_loss_wins_be_it_that_of_no_change(
    start: Start, at: float, best: float, candidate: str, left: float
) -> None:
    weight = nn.Linear(1, 1, bias=False)
    nn.init.constant_(weight.weight, at)
    task = Task(lambda rows: -weight.weight.sum() * len(rows), [1] * 8, lambda: abs(weight.weight.item() - best))
    config = FitConfig(learning_rates=(0.2, 0.4), epochs=4, batch_size=8)
    choice = fit_best(weight, task, config, title="t", start=start)
    assert choice.candidate == candidate
    assert weight.weight.item() == pytest.approx(left, abs=0.01)
    assert choice.valid_loss == pytest.approx(abs(left - best), abs=0.01)
    told = choice.as_json()
    assert told["chosen"]["learning_rate"] == told["learning_rate"] == (0.4 if candidate == "training" else None)
    names = [row["candidate"] for row in told["candidates"]]
    assert names == ["no change", *(["start"] if start == "guess" else []), "training", "training"]
    assert told["valid_loss"] == min(row["valid_loss"] for row in told["candidates"])


@pytest.mark.parametrize("lost", [math.inf, math.nan])
def test_a_start_that_is_no_number_is_written_and_goes_on(lost: float, tmp_path: Path) -> None:
    """As a float16 model that overflows on one validation pair until it is trained."""

    def result(stop: int | None) -> Fitted:
        weight, losses, calls = nn.Linear(1, 1, bias=False), iter([lost, 3.0, 2.0, lost]), []
        nn.init.zeros_(weight.weight)

        def summed(rows: list[int]) -> Tensor:
            calls.append(rows)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return weight.weight.sum() * len(rows)

        store = TrainingState(tmp_path / "state.safetensors")
        config = FitConfig(epochs=2, batch_size=4, checkpoint_steps=1)
        task = Task(summed, [1] * 8, lambda: next(losses))
        if stop is None and store.path.is_file():
            losses = iter([3.0, 2.0, lost])
        return fit(weight, task, config, learning_rate=0.1, title="t", store=store)

    whole = result(None).as_json()
    (tmp_path / "state.safetensors").unlink()
    with pytest.raises(KeyboardInterrupt):
        result(2)
    found = result(None)
    assert found.as_json() == whole
    assert (whole["initial_loss"], whole["valid_losses"], whole["valid_loss"]) == (None, [3.0, 2.0], 2.0)
    told = Choice("training", 2.0, found, [found], unchanged_loss=lost).as_json()
    assert json.loads(json_text(told))["candidates"][0] == {"candidate": "no change", "valid_loss": None}


def test_equal_losses_change_nothing() -> None:
    weight = nn.Linear(1, 1, bias=False)
    before = weight.weight.item()
    task = Task(lambda rows: weight.weight.sum() * len(rows), [1] * 4, lambda: 1.0)
    assert fit_best(weight, task, FitConfig(), title="t").unchanged
    assert weight.weight.item() == before
    assert fit_best(weight, task, FitConfig(), title="t", may_stay=False).candidate == "training"
    assert weight.weight.item() != before


@pytest.mark.parametrize("changes", [{}, {"sites": ["o", "down", "v"]}, {"start": "ridge"}], ids=str)
def test_what_gains_nothing_is_zero_and_said(changes: dict, layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    run(RESTORED, CompensateConfig.model_validate(SETTINGS | changes), ENTRY, layout)
    found, _ = read_compensation(layout.compensation(RESTORED))
    assert not found.offset_LHD.any()
    assert not found.sites
    training = read_json(layout.training(RESTORED))
    assert training["chosen"] == {"candidate": "no change", "learning_rate": None, "reason": SAID}
    assert [row.get("learning_rate") for row in training["candidates"]][-2:] == [0.02, 0.05]
    assert len(training["heads"]) == 6, "those that were tried"
    assert f"compensate 0.5: {SAID} (loss 4." in capsys.readouterr().err


@pytest.mark.usefixtures("stock_forks")
def test_a_zero_compensation_goes_through_every_later_step(layout: Layout, tmp_path: Path) -> None:
    run(RESTORED, CONFIG, ENTRY, layout)
    run_restored(RESTORED, EVALUATE, ENTRY, layout)
    metrics, pruned = read_json(layout.metrics(RESTORED)), read_json(layout.metrics(CELL))
    assert (metrics["params_added"], metrics["perplexity"]) == (0, pruned["perplexity"])
    assert read_json(layout.details(RESTORED))["no_change"] is True
    run_report([Cell(CELL.model), CELL, RESTORED], ReportConfig(), layout)
    for name in ("report.md", "report.html"):
        assert "heads 0.5: nothing was recovered" in (layout.report / name).read_text()
    folder, compensation = layout.pruned(RESTORED), layout.compensation(RESTORED)
    export_checkpoint(folder, compensation, tmp_path / "out", ExportOptions())
    list(verify(subject(tmp_path / "out", folder, None)))
    before = {name: tensor.read() for name, tensor in stored_tensors(folder).items()}
    after = {name: tensor.read() for name, tensor in stored_tensors(tmp_path / "out").items()}
    assert set(after) == set(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert described(tmp_path / "out")["heads"] == []
    apply_compensation(folder, compensation, tmp_path / "applied", ExportOptions(verbatim=True))
    remove_compensation(tmp_path / "applied", tmp_path / "removed")
    for path in folder.iterdir():
        assert (tmp_path / "removed" / path.name).read_bytes() == path.read_bytes()


def test_an_automatic_ratio_that_gains_nothing_is_the_smallest(layout: Layout) -> None:
    cell = dataclasses.replace(RESTORED, head_ratio="auto")
    run(cell, CONFIG.model_copy(update={"auto_ratios": (0.25, 0.5)}), ENTRY, layout)
    training = read_json(layout.training(cell))
    assert (training["head_ratio"], training["chosen"]["candidate"]) == (0.25, "no change")
    run_restored(cell, EVALUATE, ENTRY, layout)
    assert read_json(layout.metrics(cell))["head_ratio_auto"] is True


@pytest.mark.parametrize("name", ["random", "bias", "ffn", "lofit", "masked", "masked-lora", "lora", "dora"])
def test_a_method_that_gains_nothing_leaves_the_pruned_model(name: str, layout: Layout) -> None:
    cell = dataclasses.replace(CELL, recovery=name)
    run_method(cell, RecoverConfig.model_validate(SETTINGS | {"rank": 2}), ENTRY, layout)
    document = read_json(layout.recovered(cell) / "recovery.json")
    assert document["no_change"] is True
    assert document["training"]["chosen"]["reason"] == SAID
    if name not in ("bias", "masked", "lora"):  # one of each kind that is shipped
        return
    run_recovered(cell, EVALUATE, ENTRY, layout)
    metrics, pruned = read_json(layout.metrics(cell)), read_json(layout.metrics(CELL))
    assert metrics["perplexity"]["value"] == pytest.approx(pruned["perplexity"]["value"], rel=1e-6)
    assert metrics["sparsity"] == pruned["sparsity"]
    assert read_json(layout.details(cell))["no_change"] is True


@pytest.mark.parametrize("name", [None, "bias", "masked", "lora"])  # one of each kind that is shipped
def test_an_export_of_what_gained_nothing_says_so(
    name: str | None, layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell, config = dataclasses.replace(CELL, recovery=name), RecoverConfig.model_validate(SETTINGS | {"rank": 2})
    if name is None:
        cell = RESTORED
        run(cell, CONFIG, ENTRY, layout)
    else:
        run_method(cell, config, ENTRY, layout)
    merge = "zeros-filled" if name == "lora" else None
    options = cell_options(cell, lambda _, section: config if section == "recover" else CONFIG, layout, merge=merge)
    record = export_cell(cell_parts(cell, layout, merge), tmp_path / "out", options, merge)
    capsys.readouterr()
    say_what_was_written(tmp_path / "out", record)
    said = capsys.readouterr().out
    assert f"tried {name or 'heads'}, " in said and "; nothing was changed, and the model is the pruned one;" in said
    card = (tmp_path / "out" / "README.md").read_text()
    assert "nothing was changed: every weight" in card and "What pruning lost is still lost" in card
    assert "part of the loss was recovered" not in card
    before, after = (stored_tensors(folder) for folder in (layout.pruned(CELL), tmp_path / "out"))
    assert all(torch.equal(after[key].read(), tensor.read()) for key, tensor in before.items())


@pytest.mark.parametrize("name", ["masked-compensated", "reconstruct"])
def test_methods_of_several_trainings_count_as_changed_where_one_of_them_is(name: str, layout: Layout) -> None:
    cell = dataclasses.replace(CELL, recovery=name)
    config = RecoverConfig.model_validate(SETTINGS | ({"learning_rates": (0.5,)} if name == "reconstruct" else {}))
    run_method(cell, config, ENTRY, layout)
    assert read_json(layout.recovered(cell) / "recovery.json")["no_change"] is True
    before = {key: tensor.read() for key, tensor in stored_tensors(layout.pruned(CELL)).items()}
    after = {key: tensor.read() for key, tensor in stored_tensors(layout.recovered(cell) / "model").items()}
    assert all(torch.equal(after[key], value) for key, value in before.items())
    if name == "reconstruct":
        run_method(cell, config.model_copy(update={"learning_rates": (0.5, 0.002)}), ENTRY, layout)
        document = read_json(layout.recovered(cell) / "recovery.json")
        assert document["no_change"] is False
        assert {block["learning_rate"] for block in document["training"]["blocks"]} == {0.002}


def test_weights_that_gained_nothing_are_recorded_where_biases_gained(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = biases.trained_compensation
    monkeypatch.setattr(
        biases, "trained_compensation", lambda *given: dataclasses.replace(real(*given), unchanged=False)
    )
    cell = dataclasses.replace(CELL, recovery="masked-compensated")
    run_method(cell, RecoverConfig.model_validate(SETTINGS), ENTRY, layout)
    document = read_json(layout.recovered(cell) / "recovery.json")
    assert (document["no_change"], document["weights_unchanged"]) == (False, True)


def test_interrupted_no_change_ends_the_same(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG.model_copy(update={"checkpoint_steps": 2})
    run(RESTORED, config, ENTRY, layout)
    files = layout.compensation(RESTORED), layout.training(RESTORED)
    expected = [path.read_bytes() for path in files]
    save, calls = TrainingState.save, iter(range(100))

    def save_and_die(self: TrainingState, *arguments: object) -> None:
        save(self, *arguments)  # type: ignore[arg-type]
        if next(calls) == 5:  # in the run of the second rate
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingState, "save", save_and_die)
        run(RESTORED, config, ENTRY, layout)
    run(RESTORED, config, ENTRY, layout)
    assert [path.read_bytes() for path in files] == expected


def test_a_rate_with_which_training_diverges_is_no_candidate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The good runs count; where every rate diverges, that is the answer, and the state before it is kept."""

    class Weight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

    weight = Weight()

    def loss(rows: list[int]) -> torch.Tensor:
        far = weight.w.abs().max() > 5  # a rate of 10 gets there in one step
        return ((weight.w - 1).square().sum() * (float("nan") if far else 1.0)) * len(rows)

    task = Task(loss, [1] * 8, lambda: float((weight.w.detach() - 1).square()))
    config = FitConfig(learning_rates=(10.0, 0.05), epochs=2, batch_size=2, checkpoint_steps=1)
    stores = TrainingStates(tmp_path)
    choice = fit_best(weight, task, config, title="t", stores=stores.part("one"))
    assert (choice.learning_rate, choice.diverged) == (0.05, [10.0])
    assert [run.learning_rate for run in choice.runs] == [0.05]
    assert choice.as_json()["diverged"] == [10.0]
    assert 0 < weight.w.item() < 1
    said = capsys.readouterr().err
    assert "this rate is no candidate" in said
    assert "is kept in" not in said, "it is deleted when the stage ends"
    ended, _ = read_all_tensors(Path(str(stores.part("one").of("rate-0.05"))))
    assert set(ended) == {"best.w"}, "nothing goes on from the end of a run"
    again = fit_best(weight, task, config, title="t", stores=stores.part("one"))
    assert again.as_json() == choice.as_json()
    nn.init.zeros_(weight.w)
    with pytest.raises(Diverged, match=r"lower the learning_rates; the last good state, of step \d, is kept in"):
        fit_best(
            weight,
            task,
            config.model_copy(update={"learning_rates": (10.0, 9.0)}),
            title="t",
            stores=stores.part("none"),
        )
