"""lm-eval against direct computations; which tasks run, and where their data come from."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from restorelcc.base.documents import write_document
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.tables import ITEMS, write_table
from restorelcc.stages.evaluate import tasks
from restorelcc.stages.evaluate.batches import windowed, within_memory
from restorelcc.stages.evaluate.harness import _gold, check_room, item_rows, run_harness, task_metrics
from restorelcc.stages.evaluate.local_data import local_copy, split_files
from restorelcc.stages.evaluate.tasks import PRESETS, load_tasks, selected_tasks
from tests import pico
from tests.hub_layout import PLACES, generated_rows, real_rows, write_hub
from tests.real import real_folder

pytestmark = pytest.mark.usefixtures("known_tasks")


def _write_task(folder: Path, count: int) -> list[dict]:
    from restorelcc.stages.corpus.stage import _task

    generator = torch.Generator().manual_seed(0)
    words = [[f"w{n}" for n in row] for row in torch.randint(3, 63, (count, 9), generator=generator).tolist()]
    rows = [
        {
            "item_id": n,
            "question": " ".join(w[:4]),
            "choices": [" ".join(w[4:6]), w[6], " ".join(w[7:9])],
            "gold": n % 3,
        }
        for n, w in enumerate(words)
    ]
    write_table(folder / "pico_task.parquet", rows, ITEMS)
    (folder / "pico_task.yaml").write_text(yaml.safe_dump(_task("pico_task", Path("elsewhere/pico_task.parquet"))))
    write_document(folder / "tasks.json", {"embedded": ["pico_task"]})
    return rows


def _loaded(folder: Path) -> dict:
    return load_tasks(selected_tasks(folder, [], folder, str(folder / "cache")))


@pytest.mark.parametrize("shown", ["", "1"])
@pytest.mark.parametrize("batch_size", [7, "auto"])
def test_bars_are_silent_in_a_file_and_name_the_stage_on_a_terminal(
    tmp_path: Path, batch_size: int | str, shown: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("RESTORELCC_PROGRESS", shown)
    monkeypatch.setenv("TQDM_DISABLE", "1")  # which lm-eval's bars do not heed
    _write_task(tmp_path, 4)
    loaded = _loaded(tmp_path)
    capfd.readouterr()
    run_harness(pico.pico(), pico.word_tokenizer(), loaded, batch_size=batch_size, limit=None, seed=0)
    bars = [line for line in re.split("[\r\n]+", capfd.readouterr().err) if "%|" in line or "|" in line]
    assert bool(bars) == bool(shown)
    assert all(bar.lstrip("\x1b[A").startswith("evaluate") for bar in bars)
    assert not [bar for bar in bars if "%|" in bar], "they look like ours"


@pytest.mark.parametrize("batch_size", [7, "auto"])
def test_lm_eval_equals_a_direct_log_likelihood_computation(tmp_path: Path, batch_size: int | str) -> None:
    rows = _write_task(tmp_path, 50)
    model, tokenizer = pico.pico(), pico.word_tokenizer()
    results = run_harness(model, tokenizer, _loaded(tmp_path), batch_size=batch_size, limit=None, seed=0)
    found = item_rows(results)
    assert [row["item_id"] for row in found] == list(range(50))
    correct = 0
    for row, ours in zip(rows, found, strict=True):
        question, expected = tokenizer(row["question"])["input_ids"], []
        for choice in row["choices"]:
            ids = question + tokenizer(choice)["input_ids"]
            with torch.no_grad():
                log_p = model(input_ids=torch.tensor([ids])).logits.log_softmax(-1)[0]
            expected.append(sum(log_p[at - 1, ids[at]].item() for at in range(len(question), len(ids))))
        assert ours["log_likelihoods"] == pytest.approx(expected, abs=1e-4)
        assert ours["prediction"] == max(range(3), key=expected.__getitem__)
        assert ours["correct"] == (ours["prediction"] == row["gold"] == ours["gold"])
        assert ours["score"] == float(ours["correct"])
        correct += ours["correct"]
    metrics = task_metrics(results)["pico_task"]
    assert (metrics["metric"], metrics["n"], metrics["version"]) == ("acc", 50, 1.0)
    assert metrics["value"] == pytest.approx(correct / 50)
    assert metrics["stderr"] == pytest.approx(math.sqrt(correct / 50 * (1 - correct / 50) / 49))


@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_a_long_question_keeps_its_beginning_where_the_model_reads_it(tmp_path: Path, batch_size: int | str) -> None:
    """As with many examples in front: stock lm-eval cuts at the model's context, and at nothing less."""
    rows = _write_task(tmp_path, 1)
    rows[0]["question"] = " ".join(f"w{3 + n * n % 59}" for n in range(2500))
    write_table(tmp_path / "pico_task.parquet", rows, ITEMS)
    model, tokenizer = pico.pico(max_position_embeddings=4096), pico.word_tokenizer()
    found = item_rows(run_harness(model, tokenizer, _loaded(tmp_path), batch_size=batch_size, limit=None, seed=0))
    question, expected = tokenizer(rows[0]["question"])["input_ids"], []
    for choice in rows[0]["choices"]:
        ids = torch.tensor([question + tokenizer(choice)["input_ids"]])
        log_p = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])
        expected.append(float(log_p[len(question) - 1 :].sum()))
    assert found[0]["log_likelihoods"] == pytest.approx(expected, abs=1e-4)


def test_windows_of_running_text_stay_short_and_requests_do_not() -> None:
    class Model:
        _max_length = 100_000

        @property
        def max_length(self) -> int:
            return self._max_length

        def loglikelihood_rolling(self) -> list[int]:
            return [self.max_length]

    model = windowed(Model)()
    assert model.loglikelihood_rolling() == [2048]
    assert model.max_length == 100_000


def test_answers_longer_than_the_context_are_refused_before_any_item() -> None:
    asked = {"max_gen_toks": 2048}
    tasks = {
        "choices": SimpleNamespace(config=SimpleNamespace(output_type="multiple_choice")),
        "long": SimpleNamespace(config=SimpleNamespace(output_type="generate_until", generation_kwargs=asked)),
    }
    with pytest.raises(BadInput, match="task 'long' has answers of up to 2048 tokens, and the model reads 2048"):
        check_room(tasks, 2048)
    check_room(tasks, 2049)


@pytest.mark.parametrize(
    ("target", "choices", "prediction", "score", "gold"),
    [
        (2, 4, 0, 0.0, 2),
        (np.int64(2), 4, 0, 0.0, 2),
        ("1", 4, 0, 0.0, 1),
        ("20", 2, 0, 1.0, 0),
        ("20", 2, 0, 0.0, 1),
        ("a text", 4, None, 1.0, None),
        ("18", 0, None, None, None),
    ],
)
def test_the_right_choice_is_told_where_it_is_known(
    target: object, choices: int, prediction: int | None, score: float | None, gold: int | None
) -> None:
    assert _gold(target, choices, prediction, score) == gold


def test_the_batch_size_changes_nothing_beyond_rounding(tmp_path: Path) -> None:
    _write_task(tmp_path, 20)
    model, tokenizer = pico.pico(), pico.word_tokenizer()
    ways = [
        item_rows(run_harness(model, tokenizer, _loaded(tmp_path), batch_size=size, limit=None, seed=0))
        for size in (1, 5, "auto")
    ]
    for row, *others in zip(*ways, strict=True):
        for other in others:
            assert row["log_likelihoods"] == pytest.approx(other["log_likelihoods"], abs=1e-4)
            assert row["digest"] == other["digest"]


def test_bfloat16_models_have_their_softmax_in_float32_with_any_batch_size(tmp_path: Path) -> None:
    """In bfloat16 it would round a log-likelihood of -10 to a sixteenth, and choices would tie."""
    _write_task(tmp_path, 20)
    model, tokenizer = pico.pico().to(torch.bfloat16), pico.word_tokenizer()
    found = []
    for size in (4, "auto"):
        rows = item_rows(run_harness(model, tokenizer, _loaded(tmp_path), batch_size=size, limit=None, seed=0))
        found.append(torch.tensor([value for row in rows for value in row["log_likelihoods"]]))
    torch.testing.assert_close(found[0], found[1], atol=0.02, rtol=0)
    assert bool((found[0] != found[0].bfloat16().float()).any())


def test_the_digest_of_an_item_changes_with_its_content(tmp_path: Path) -> None:
    _write_task(tmp_path, 10)
    model, tokenizer = pico.pico(), pico.word_tokenizer()
    first = item_rows(run_harness(model, tokenizer, _loaded(tmp_path), batch_size=4, limit=None, seed=0))
    rows = _write_task(tmp_path, 10)
    rows[3]["choices"] = [*rows[3]["choices"][:2], "w40"]
    write_table(tmp_path / "pico_task.parquet", rows, ITEMS)
    second = item_rows(run_harness(model, tokenizer, _loaded(tmp_path), batch_size=4, limit=None, seed=0))
    assert [n for n, (a, b) in enumerate(zip(first, second, strict=True)) if a["digest"] != b["digest"]] == [3]


def test_memory_that_runs_out_halves_the_batch() -> None:
    tried = []

    def run(budget: int) -> str:
        tried.append(budget)
        if budget > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert within_memory(run, 100) == "done"
    assert tried == [100, 50, 25, 12]

    def never(_: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(StageFailed, match="does not fit into memory with one sequence"):
        within_memory(never, 4)


def test_an_unknown_task_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(BadInput, match=r"'hellaswgag', which is neither .*paper-7.*did you mean 'hellaswag'"):
        load_tasks(["hellaswgag"])


def test_the_embedded_tasks_belong_to_the_microworld(tmp_path: Path) -> None:
    write_document(tmp_path / "tasks.json", {"embedded": []})
    with pytest.raises(BadInput, match="the tasks of the microworld"):
        selected_tasks(tmp_path, ["embedded"], tmp_path, "")


def test_presets_are_spelled_out_once(tmp_path: Path) -> None:
    write_document(tmp_path / "tasks.json", {"embedded": []})
    asked = selected_tasks(tmp_path, ["rte", "paper-7"], tmp_path, "")
    assert sorted(each.name for each in asked) == sorted(PRESETS["paper-7"])
    assert {each.metric for each in asked} == {"acc"}, "whatever a task's own first metric is"


def _check_paper_7(local: str | dict[str, str], tmp_path: Path, items: int, model, tokenizer) -> list[dict]:
    """All seven tasks, with the documented keys and one row per item."""
    loaded = load_tasks(list(PRESETS["paper-7"]), local, str(tmp_path / "cache"))
    results = run_harness(model, tokenizer, loaded, batch_size="auto", limit=None, seed=0)
    metrics, rows = task_metrics(results), item_rows(results)
    assert set(metrics) == set(PRESETS["paper-7"]) == set(PLACES)
    for name, task in metrics.items():
        own = [row for row in rows if row["task"] == name]
        assert (task["metric"], task["n"]) == ("acc", items)
        assert task["version"] is not None
        assert task["value"] == pytest.approx(sum(row["correct"] for row in own) / items)
        assert all(row["gold"] in range(len(row["log_likelihoods"])) for row in own)
        assert all((row["prediction"] == row["gold"]) == row["correct"] for row in own)
    return rows


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket can be opened: what is asked of the hub fails at once."""
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise OSError("this test has no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("offline")
def test_a_preset_reads_few_of_lm_evals_files_and_finds_what_all_of_them_say(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tasks._index((), None)  # of the folders that tests name
    names = PRESETS["paper-7"]
    few = tasks._manager((), names)
    assert set(names) <= set(few.all_tasks) < set(whole.all_tasks)
    assert {name: few.task_index[name] for name in names} == {name: whole.task_index[name] for name in names}
    monkeypatch.setitem(tasks._PRESET_FOLDERS, "rte", "where it once lay")
    assert tasks._manager((), names) is whole, "where it has moved to is looked for"
    assert tasks._manager((), [*names, "copa"]) is whole


def test_paper_7_runs_offline_from_local_copies(tmp_path: Path) -> None:
    write_hub(tmp_path / "hub", generated_rows(6), jsonl=("hellaswag", "arc_easy"))
    rows = _check_paper_7(str(tmp_path / "hub"), tmp_path, 6, pico.pico(), pico.word_tokenizer())
    by_name = {task: str(tmp_path / "hub" / PLACES[task][0]) for task in PLACES}
    assert _check_paper_7(by_name, tmp_path / "named", 6, pico.pico(), pico.word_tokenizer()) == rows


@pytest.mark.usefixtures("offline")
def test_paper_7_runs_offline_from_the_real_sets(tmp_path: Path) -> None:
    from restorelcc.models.checkpoints import load_model, load_tokenizer

    real = real_folder()
    write_hub(tmp_path / "hub", real_rows(real / "data", 10), jsonl=("rte",))
    folder = real / "models" / "stories260K"
    model, tokenizer = load_model(folder, torch.float32, torch.device("cpu")), load_tokenizer(folder)
    _check_paper_7(str(tmp_path / "hub"), tmp_path, 10, model, tokenizer)


@pytest.mark.usefixtures("offline")
def test_data_that_cannot_be_had_is_an_error_that_says_what_to_do(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match=r"Rowan/hellaswag of task 'hellaswag' cannot be loaded .*evaluate.datasets"):
        load_tasks(["hellaswag"])


def test_local_copies_go_by_task_by_hub_id_and_by_configuration(tmp_path: Path) -> None:
    folder = str(tmp_path)
    for key in ("arc_easy", "allenai/ai2_arc", "ai2_arc", "ARC-Easy"):
        assert local_copy({key: folder}, "arc_easy", "allenai/ai2_arc", "ARC-Easy") == tmp_path
    assert local_copy({"boolq": folder}, "arc_easy", "allenai/ai2_arc", "ARC-Easy") is None
    with pytest.raises(BadInput, match=r"evaluate.datasets.rte is '/nowhere': there is no such folder"):
        local_copy({"rte": "/nowhere"}, "rte", "nyu-mll/glue", "rte")
    with pytest.raises(BadInput, match="there is no such folder"):
        local_copy("/nowhere", "rte", "nyu-mll/glue", "rte")


def test_split_files_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "main").mkdir()
    for name in ("main/test-00000-of-00002.parquet", "main/test-00001-of-00002.parquet", "main/dev.parquet"):
        (tmp_path / name).touch()
    kind, files = split_files(tmp_path, "main")
    assert (kind, {split: len(found) for split, found in files.items()}) == ("parquet", {"test": 2, "validation": 1})
    with pytest.raises(BadInput, match="holds no data file of configuration other"):
        split_files(tmp_path, "other")
    (tmp_path / "main" / "train.jsonl").touch()
    with pytest.raises(BadInput, match="several formats"):
        split_files(tmp_path, "main")


def test_a_folder_of_task_files_is_a_task_list(tmp_path: Path) -> None:
    rows = _write_task(tmp_path, 4)
    task = yaml.safe_load((tmp_path / "pico_task.yaml").read_text())
    task["dataset_kwargs"] = {"data_files": {"test": str(tmp_path / "pico_task.parquet")}}
    (tmp_path / "pico_task.yaml").write_text(yaml.safe_dump(task))
    (tmp_path / "tasks.json").unlink()
    results = run_harness(
        pico.pico(), pico.word_tokenizer(), load_tasks([str(tmp_path)]), batch_size="auto", limit=None, seed=0
    )
    assert task_metrics(results)["pico_task"]["n"] == len(rows)
