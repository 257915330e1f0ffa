"""The training loop: it goes on where it was cut off, and how a batch is worked off does not matter."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from restorelcc.base.cell import Cell
from restorelcc.base.digest import file_digest
from restorelcc.base.documents import read_json
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.layout import Layout
from restorelcc.base.publish import locked
from restorelcc.base.tables import EXAMPLES, HEADS, read_table, write_table
from restorelcc.compensation.file import read_compensation
from restorelcc.models.architectures import all_blocks
from restorelcc.models.runtime import computes_as
from restorelcc.models.text import EncodedPair
from restorelcc.release.export.cell import cell_options
from restorelcc.release.export.facts import cell_ancestors
from restorelcc.release.provenance import parents_of
from restorelcc.release.verify.files import check_parent
from restorelcc.stages.compensate import CompensateConfig
from restorelcc.stages.compensate.stage import run
from restorelcc.training import loop
from restorelcc.training.attached import SiteBiases, TrainableCompensation, attached, site_linears
from restorelcc.training.checkpointing import checkpointed_blocks
from restorelcc.training.compensation import Pairs, fit_compensation, pairs_task
from restorelcc.training.config import SITES, FitConfig
from restorelcc.training.loop import Fitted, Task, fit
from restorelcc.training.losses import pair_losses, response_batch, response_loss, similar_parts
from restorelcc.training.state import TrainingState, training_states
from tests import pico
from tests.recovery_project import CELL, ENTRY, recovery_project

RESTORED = Cell(CELL.model, CELL.pruning, "0.5")
CONFIG = CompensateConfig(learning_rates=(0.02,), epochs=2, batch_size=8, max_tokens=16, checkpoint_steps=2)


def _pairs(count: int = 24) -> Pairs:
    rows = pico.tokens(count, 7, seed=3).tolist()
    pairs = [EncodedPair(ids[: 5 + number % 3], 3 + number % 2, truncated=False) for number, ids in enumerate(rows)]
    return Pairs(pairs, pairs[:8], 0)


def _sites(model) -> TrainableCompensation:
    return TrainableCompensation(None, SiteBiases(site_linears(model, SITES)))


class Interrupted(Exception):
    pass


class StopsAfter:
    """A task that is cut off at a call of its loss."""

    def __init__(self, task: Task, calls: int) -> None:
        self.task, self.left = task, calls

    def summed_loss(self, rows: list[int]) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise Interrupted
        return self.task.summed_loss(rows)

    def as_task(self) -> Task:
        return Task(self.summed_loss, self.task.tokens, self.task.validate)


def _fit(store: TrainingState | None, stop: int | None = None, **changes: object) -> tuple[Fitted, nn.Module]:
    model = pico.pico()
    trained = _sites(model)
    config = CONFIG.model_copy(update={"epochs": 3, **changes})
    with attached(model, trained), checkpointed_blocks(model, config.gradient_checkpointing):
        task = pairs_task(model, _pairs())
        task = task if stop is None else StopsAfter(task, stop).as_task()
        return fit(trained, task, config, learning_rate=0.02, title="test", store=store), trained


@pytest.mark.parametrize("stop", [1, 2, 5, 8])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(stop: int, tmp_path: Path) -> None:
    whole, expected = _fit(None, patience=1)
    store = TrainingState(tmp_path / "state.safetensors")
    with pytest.raises(Interrupted):
        _fit(store, stop, patience=1)
    assert (store.load() is not None) == (stop >= 2), "a state is saved every second step"
    again, found = _fit(store, patience=1)
    assert again == whole
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_many_numbers_take_the_same_steps_in_one_pass_over_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As whole weights are trained: the same up to rounding, and resumed to the same bits."""
    few, expected = _fit(None)
    monkeypatch.setattr(loop, "_MANY", 1)
    whole, found = _fit(None)
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
        assert a.abs().max() > 1e-2
    assert whole.valid_losses == pytest.approx(few.valid_losses, rel=1e-5)
    store = TrainingState(tmp_path / "state.safetensors")
    with pytest.raises(Interrupted):
        _fit(store, 5)
    again, resumed = _fit(store)
    assert again == whole
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), found.parameters(), strict=True))


def test_a_run_goes_on_only_where_it_computes_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    assert computes_as("auto", "auto") == computes_as("float32", "cpu") == "float32 cpu"
    assert computes_as("bfloat16", "cpu") == "bfloat16 cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert computes_as("auto", "auto") == "bfloat16 cuda", "the same entry, on another machine"


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    store = TrainingState(tmp_path / "state.safetensors")
    whole, expected = _fit(store)
    again, found = _fit(store, stop=0)
    assert again == whole
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    store = TrainingState(tmp_path / "state.safetensors")
    _fit(store)
    store.path.write_bytes(store.path.read_bytes()[:100])
    with pytest.raises(BadInput, match=r"state\.safetensors is a damaged training state: delete it"):
        _fit(store)


def test_a_batch_in_parts_gives_the_same_step() -> None:
    whole, expected = _fit(None)
    parts, found = _fit(None, accumulate=3)
    assert parts.valid_loss == pytest.approx(whole.valid_loss, rel=1e-4)
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-2)


def test_a_batch_runs_in_parts_of_similar_length() -> None:
    lengths = [600, 590, 90, 80, 70, 60, 50, 40]
    assert similar_parts(lengths, [2, 0, 3, 1], most=4096, enough=512) == [[0, 1], [2, 3]], "little is padding"
    assert similar_parts(lengths, [0, 1], most=700, enough=512) == [[0], [1]], "nor has a part more tokens than allowed"
    assert similar_parts(lengths, [0], most=100, enough=512) == [[0]], "unless one row has more"
    assert similar_parts(lengths, [7, 2, 5], most=4096, enough=512) == [[7, 2, 5]], "small parts would take as long"
    assert similar_parts(lengths, [7, 2, 5], most=4096, enough=80) == [[2], [5], [7]]
    assert similar_parts(lengths, [7, 2, 5], most=4096, enough=160) == [[2], [5, 7]], "a pass costs 20 tokens"
    assert similar_parts(lengths, [7, 6, 5, 4], most=100, enough=512) == [[4], [5], [6, 7]]


def test_parts_cost_the_least_of_all_ways_to_cut() -> None:
    lengths = [200, 180, 90, 88, 87, 30, 29]
    rows = list(range(len(lengths)))
    cuts = (cut for count in rows for cut in combinations(range(1, len(rows)), count))
    ways = [[rows[a:b] for a, b in pairwise((0, *cut, len(rows)))] for cut in cuts]

    def cost(parts: list[list[int]]) -> int:
        return sum(len(part) * lengths[part[0]] + 256 // 8 for part in parts)

    allowed = [parts for parts in ways if all(len(part) * lengths[part[0]] <= 400 for part in parts)]
    found = similar_parts(lengths, rows, most=400, enough=256)
    assert found == [[0, 1], [2, 3, 4], [5, 6]]
    assert cost(found) == min(map(cost, allowed))


def test_parts_give_the_loss_of_the_whole_batch() -> None:
    model, pairs = pico.pico(), _pairs()
    task = pairs_task(model, pairs)
    rows = list(range(6))
    assert task.parts(rows) == [rows]
    parts = similar_parts([len(pair.ids) for pair in pairs.train], rows, most=12, enough=512)
    assert len(parts) > 1 and sorted(row for part in parts for row in part) == rows
    with torch.no_grad():
        summed = sum(task.summed_loss(part).item() for part in parts)
        assert summed == pytest.approx(task.summed_loss(rows).item(), rel=1e-6)


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_gradient_checkpointing_gives_the_same_gradients_and_leaves_no_trace(family: str) -> None:
    model = pico.pico(family)
    batch = response_batch(_pairs().train[:6], 0, torch.device("cpu"))
    gradients = []
    for wanted in (False, True):
        trained = _sites(model)
        with attached(model, trained), checkpointed_blocks(model, wanted):
            response_loss(model, *batch).backward()
        gradients.append([part.grad for part in trained.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)
    assert not any(module.training for module in model.modules())
    assert not model.is_activation_checkpointing
    assert not model.get_input_embeddings()._forward_hooks
    assert not model(input_ids=batch[0]).logits.requires_grad


def test_a_callers_own_hooks_on_the_embedding_come_back_after_checkpointing() -> None:
    model, ids = pico.pico(), torch.tensor([[5, 6, 7]])
    model.enable_input_require_grads()
    with checkpointed_blocks(model, True):
        assert not model.get_input_embeddings()._forward_hooks
    assert model(input_ids=ids).logits.requires_grad
    model.disable_input_require_grads()
    assert not model(input_ids=ids).logits.requires_grad


def test_below_the_lowest_site_nothing_is_recomputed_for_a_gradient() -> None:
    model = pico.pico()
    batch = response_batch(_pairs().train[:6], 0, torch.device("cpu"))
    linears = {name: linear for name, linear in site_linears(model, ("o",)).items() if not name.startswith("0.")}
    seen = []
    with attached(model, TrainableCompensation(None, SiteBiases(linears))), checkpointed_blocks(model, True):
        hooks = [block.register_forward_pre_hook(lambda _, args: seen.append(args[0].requires_grad))
                 for block in all_blocks(model)[:2]]  # fmt: skip
        response_loss(model, *batch)
    for hook in hooks:
        hook.remove()
    assert seen == [False, False], "what enters the first two blocks"


def test_dropout_stays_off_where_blocks_read_its_rate_from_the_config() -> None:
    model, pairs = pico.pico("falcon", hidden_dropout=0.5, attention_dropout=0.5), _pairs()
    plain = pair_losses(model, pairs.valid, pairs.pad)
    with checkpointed_blocks(model, True):
        assert torch.equal(pair_losses(model, pairs.valid, pairs.pad), plain)
    assert (model.config.hidden_dropout, model.config.attention_dropout) == (0.5, 0.5)


def test_early_stopping_keeps_the_best_epoch() -> None:
    model, weight = pico.pico(), nn.Linear(1, 1, bias=False)
    losses, seen = iter([5.0, 3.0, 4.0, 4.5, 1.0]), []

    def validate() -> float:
        seen.append(weight.weight.item())
        return next(losses)

    task = Task(lambda rows: (weight.weight.sum() - 10).square() * len(rows), [1] * 8, validate)
    result = fit(weight, task, FitConfig(epochs=4, batch_size=4, patience=2), learning_rate=0.1, title="t")
    assert (result.valid_losses, result.valid_loss, result.steps) == ([3.0, 4.0, 4.5], 3.0, 6)
    assert weight.weight.item() == seen[1] != seen[3]
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_step_after_a_good_state_names_it_when_the_loss_is_no_number(tmp_path: Path) -> None:
    weight, store = nn.Linear(1, 1, bias=False), TrainingState(tmp_path / "state.safetensors")
    calls = iter(range(100))
    task = Task(lambda rows: weight.weight.sum() * (float("nan") if next(calls) >= 3 else 1.0), [1] * 8, lambda: 0.0)
    with pytest.raises(StageFailed, match=r"t: the loss is nan at step 4 of 8: lower.*of step 2, is kept in .*state"):
        fit(weight, task, FitConfig(epochs=2, batch_size=2, checkpoint_steps=2), learning_rate=0.1, title="t",
            store=store)  # fmt: skip
    tensors, progress = store.load() or ({}, {})
    assert progress["steps"] == 2
    assert torch.isfinite(tensors["now.weight"]).all()


@pytest.mark.parametrize(
    ("minutes", "save_minutes", "saved"), [(2, 0, [1, 2, 3, 4]), (0.4, 0, [3, 4]), (2, 0.1, [1, 3, 4])]
)
def test_slow_steps_are_saved_by_the_clock_unless_saving_takes_its_time(
    minutes: float, save_minutes: float, saved: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, clock, states = nn.Linear(1, 1, bias=False), [0.0], []
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def loss(rows: list[int]) -> torch.Tensor:
        clock[0] += 60 * minutes
        return weight.weight.sum() * len(rows)

    class Kept:
        def load(self) -> None:
            return None

        def save(self, tensors: dict[str, torch.Tensor], progress: dict) -> None:
            clock[0] += 60 * save_minutes
            states.append(progress["steps"])

    task = Task(loss, [1] * 8, lambda: 0.0)
    fit(weight, task, FitConfig(epochs=1, batch_size=2), learning_rate=0.1, title="t", store=Kept())
    assert states == saved


def test_a_gradient_that_is_no_number_stops_before_it_is_used() -> None:
    weight = nn.Linear(1, 1, bias=False)
    before = weight.weight.item()
    task = Task(lambda rows: (weight.weight.sum() - before).sqrt(), [1] * 4, lambda: 0.0)
    with pytest.raises(StageFailed, match=r"the loss's gradient is (nan|inf) at step 1"):
        fit(weight, task, FitConfig(), learning_rate=0.1, title="t")
    assert weight.weight.item() == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_is_compensated_in_float32(dtype: torch.dtype) -> None:
    model = pico.pico().to(dtype)
    trained = _sites(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    best = fit_compensation(model, trained, _pairs(), CONFIG, title="t")
    assert all(part.dtype == torch.float32 for part in best.compensation.parameters())
    assert best.choice.valid_loss < best.choice.run.initial_loss
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(any(part.any() for part in (bias,)) for bias in best.compensation.parameters())


def test_the_least_validation_loss_chooses_the_rate() -> None:
    model = pico.pico()
    config = CONFIG.model_copy(update={"learning_rates": (1e-5, 0.03)})
    best = fit_compensation(model, _sites(model), _pairs(), config, title="t")
    assert best.choice.learning_rate == 0.03
    assert [run.learning_rate for run in best.choice.runs] == [1e-5, 0.03]
    assert best.choice.valid_loss == min(run.valid_loss for run in best.choice.runs)


def test_the_stage_changes_nothing_but_the_compensation_and_is_byte_identical(tmp_path: Path) -> None:
    layout = recovery_project(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    run(RESTORED, CONFIG, ENTRY, layout)
    first = layout.compensation(RESTORED).read_bytes()
    run(RESTORED, CONFIG, ENTRY, layout)
    assert layout.compensation(RESTORED).read_bytes() == first
    assert all(path.read_bytes() == content for path, content in before.items())
    training = read_json(layout.training(RESTORED))
    assert (training["train_pairs"], training["left_out"]) == (24, 0)
    ranked = sorted(read_table(layout.heads(RESTORED), HEADS), key=lambda row: row["rank"])
    assert training["heads"] == [[row["layer"], row["head"]] for row in ranked[:6]]
    assert len(training["runs"][0]["valid_losses"]) == CONFIG.epochs
    edited = CONFIG.model_copy(update={"epochs": 9, "sites": ("o", "down")})  # params.yaml, since it was trained
    options = cell_options(RESTORED, lambda _alias, _name: edited, layout)
    assert options.config["compensate"] == CONFIG.model_dump(mode="json") == training["settings"]
    assert options.names["method"]["name"] == "heads" and "down" not in options.names["method"]["does"]


def test_an_export_says_on_which_data_the_compensation_was_trained(tmp_path: Path) -> None:
    layout = recovery_project(tmp_path)
    run(RESTORED, CONFIG, ENTRY, layout)
    path, ancestors = layout.compensation(RESTORED), cell_ancestors(RESTORED, layout)
    metadata = read_compensation(path)[1]
    parents = parents_of(layout.pruned(RESTORED), path, metadata, ancestors)
    for name in ("train.parquet", "valid.parquet"):
        parent = parents[f"compensation.{name}"]
        assert parent.path == layout.corpus(RESTORED) / name and parent.digest == file_digest(parent.path)
        assert check_parent(name, tmp_path, parent.described(tmp_path), None) == f"{name} {parent.digest[:12]}"
    older = {name: value for name, value in metadata.items() if not name.endswith(".parquet")}
    assert "compensation.train.parquet" not in parents_of(layout.pruned(RESTORED), path, older, ancestors)
    (layout.corpus(RESTORED) / "train.parquet").write_bytes(b"other pairs")
    with pytest.raises(BadInput, match=r"is not what was recorded as compensation\.train\.parquet"):
        parents_of(layout.pruned(RESTORED), path, metadata, ancestors)


def test_a_stage_killed_while_it_trains_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = recovery_project(tmp_path)
    run(RESTORED, CONFIG, ENTRY, layout)
    expected = layout.compensation(RESTORED).read_bytes()
    layout.compensation(RESTORED).unlink()
    save = TrainingState.save

    def save_and_die(self: TrainingState, *arguments: object) -> None:
        save(self, *arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingState, "save", save_and_die)
        run(RESTORED, CONFIG, ENTRY, layout)
    assert not layout.compensation(RESTORED).exists()
    (folder,) = layout.work.glob("compensate-pico-wanda-0.5-0.5-*")
    assert list(folder.iterdir()), "the state is kept"
    run(RESTORED, CONFIG, ENTRY, layout)
    assert layout.compensation(RESTORED).read_bytes() == expected
    assert not list(layout.work.iterdir())


@pytest.mark.parametrize("changed", ["threads", "processes", "a package"])
def test_a_state_of_another_setup_is_not_continued_and_goes_with_the_end(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, before = Layout(tmp_path), torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt), training_states(layout, "compensate", RESTORED, {}) as states:
        states.part("ratio-0.5").of("rate-0.02").save({"now": torch.ones(2)}, {"steps": 2})
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), training_states(layout, "compensate", RESTORED, {}) as states:
        assert states.part("ratio-0.5").of("rate-0.02").load() is not None, "the same setup goes on"
        raise KeyboardInterrupt
    try:
        if changed == "threads":
            torch.set_num_threads(before + 1)
        elif changed == "processes":
            monkeypatch.setenv("WORLD_SIZE", "2")
        else:
            monkeypatch.setattr("restorelcc.models.runtime.version", lambda name: f"{name} 0.1")
        with pytest.raises(KeyboardInterrupt), training_states(layout, "compensate", RESTORED, {}) as other:
            assert other.folder != states.folder and other.part("ratio-0.5").of("rate-0.02").load() is None
            raise KeyboardInterrupt
        assert list(layout.work.iterdir()) == [states.folder], "another setup's end that is not good deletes nothing"
        with training_states(layout, "compensate", RESTORED, {}) as again:
            assert again.folder == other.folder
    finally:
        torch.set_num_threads(before)
    assert list(layout.work.iterdir()) == [], "nor does a state that nothing goes on with stay"


def test_a_state_that_a_process_works_on_stays(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    busy, free = (layout.work / f"recover-pico-wanda-0.5-masked-{digit * 16}" for digit in "ab")
    free.mkdir(parents=True)
    with locked(busy):
        cell = Cell(CELL.model, CELL.pruning, recovery="masked")
        with training_states(layout, "recover", cell, {}):
            pass
        with training_states(layout, "recover", Cell(CELL.model, CELL.pruning, recovery="masked-lora"), {}):
            pass
        assert list(layout.work.iterdir()) == [busy]


def test_a_ratio_that_rounds_to_no_head_and_pairs_of_no_use_are_refused(tmp_path: Path) -> None:
    layout = recovery_project(tmp_path)
    with pytest.raises(BadInput, match=r"head_ratio 0\.01 of 12 heads rounds to none: give at least 0\.04"):
        run(Cell(CELL.model, CELL.pruning, "0.01"), CONFIG, ENTRY, layout)
    table = layout.corpus(CELL) / "train.parquet"
    rows = [{"task": "t", "question": "w5", "response": " ".join(["w6"] * 40)}] * 3
    write_table(table, rows, EXAMPLES)
    with pytest.raises(BadInput, match=r"train\.parquet holds no pair to train on, 3 were left out \(.*fills all 16"):
        run(RESTORED, CONFIG, ENTRY, layout)
    write_table(table, [*rows, {"task": "t", "question": "w5", "response": "w7"}], EXAMPLES)
    run(RESTORED, CONFIG, ENTRY, layout)
    training = read_json(layout.training(RESTORED))
    assert (training["train_pairs"], training["left_out"]) == (1, 3)


def test_a_target_task_and_a_number_of_examples(tmp_path: Path) -> None:
    layout = recovery_project(tmp_path)
    for name in ("train", "valid"):
        rows = [
            {"task": task, "question": f"w{3 + number}", "response": "w9"} for task in ("a", "b") for number in range(9)
        ]
        write_table(layout.corpus(CELL) / f"{name}.parquet", rows, EXAMPLES)
    run(RESTORED, CONFIG.model_copy(update={"task": "b", "examples": 4}), ENTRY, layout)
    training = read_json(layout.training(RESTORED))
    assert (training["train_pairs"], training["valid_pairs"]) == (4, 9)
    with pytest.raises(BadInput, match=r"train\.parquet has no pair of the task 'c': known are a, b"):
        run(RESTORED, CONFIG.model_copy(update={"task": "c"}), ENTRY, layout)


def test_a_validation_loss_that_is_no_number_stops() -> None:
    weight = nn.Linear(1, 1, bias=False)
    losses = iter([1.0, float("nan")])
    task = Task(lambda rows: weight.weight.sum(), [1] * 8, lambda: next(losses))
    with pytest.raises(StageFailed, match=r"the validation loss is nan at step 1 of 3"):
        fit(weight, task, FitConfig(), learning_rate=0.1, title="t")
