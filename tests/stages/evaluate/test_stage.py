"""The evaluate stages on a pico model in a folder: what is written, compared and refused."""

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from restorelcc.base.cell import Cell
from restorelcc.base.digest import model_digest
from restorelcc.base.documents import read_json, read_metrics, write_document, write_json
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.fingerprint import read_fingerprint
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import DataFiles, ModelEntry
from restorelcc.base.prunings import parse_pruning
from restorelcc.base.tables import (
    HEADS,
    ITEMS,
    MEASURED,
    SAMPLES,
    TEXT_SCORES,
    read_table,
    read_texts,
    write_table,
    write_texts,
)
from restorelcc.cli.app import app
from restorelcc.compensation.file import read_compensation
from restorelcc.compensation.hooks import compensated
from restorelcc.models.checkpoints import load_model, save_checkpoint
from restorelcc.models.tensors import write_tensors
from restorelcc.stages.corpus.stage import _task
from restorelcc.stages.evaluate import EvaluateConfig, GenerationConfig
from restorelcc.stages.evaluate.stage import run_dense, run_pruned, run_restored
from restorelcc.stages.evaluate.versus import Outcome, versus
from restorelcc.stages.prune.prune import prune_model
from restorelcc.stages.report import ReportConfig
from restorelcc.stages.report.markdown import markdown
from restorelcc.stages.report.results import read_results
from tests import pico
from tests.fingerprints import SWAPS, swapped
from tests.recovery_project import log_likelihoods
from tests.stages.evaluate.own_tasks import KINDS, write_task

DENSE, PRUNED, RESTORED = Cell("m"), Cell("m", "wanda-0.5"), Cell("m", "wanda-0.5", "0.1")
ENTRY = ModelEntry(source="some/model", threads=1, data=DataFiles(calibration="c", instructions="i", heldout="h"))
CONFIG = EvaluateConfig(
    bootstrap_samples=200,
    sanity_gate=False,
    generation=GenerationConfig(prompts=4, new_tokens=8, heldout_tokens=60),
)

pytestmark = pytest.mark.usefixtures("known_tasks")


def _words(count: int, seed: int) -> str:
    return " ".join(f"w{3 + (seed * 17 + n * (7 + seed % 5)) % 60}" for n in range(count))


def _items(gold: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "item_id": n,
            "question": _words(4, n),
            "choices": [_words(1, n + 50), _words(1, n + 91)],
            "gold": (n + gold) % 2,
        }
        for n in range(12)
    ]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Dense, pruned and restored pico model, evaluated in this order."""
    layout, model, tokenizer = Layout(tmp_path_factory.mktemp("evaluate")), pico.pico(), pico.word_tokenizer()
    save_checkpoint(layout.dense(DENSE), model, tokenizer)
    prune_model(model, parse_pruning("wanda-0.5"), [pico.tokens()])
    save_checkpoint(layout.pruned(PRUNED), model, tokenizer)
    layers = [{"layer": layer, "sparsity": 0.5, "error": None} for layer in range(pico.LAYERS)]
    write_document(layout.pruned(PRUNED) / "sparsity.json", {"layers": layers})
    tasks = layout.corpus(DENSE) / "tasks"
    write_texts(layout.corpus(DENSE) / "heldout.parquet", [_words(12, n) for n in range(10)])
    write_table(tasks / "t.parquet", _items(), ITEMS)
    (tasks / "t.yaml").write_text(yaml.safe_dump(_task("t", Path("t.parquet"))))
    write_document(tasks / "tasks.json", {"embedded": ["t"]})
    _write_compensation(layout)
    run_dense(DENSE, CONFIG, ENTRY, layout)
    run_pruned(PRUNED, CONFIG, ENTRY, layout)
    run_restored(RESTORED, CONFIG, ENTRY, layout)
    return layout


def _write_compensation(layout: Layout) -> None:
    offset = torch.zeros(pico.LAYERS, pico.HEADS, pico.HEAD_DIM)
    offset[1, 2] = 1.0
    shape = (1, pico.HEAD_DIM)
    tensors = {"offset": offset, "beta": torch.ones(shape), "bias": torch.ones(shape)}
    layout.compensation(RESTORED).parent.mkdir(parents=True)
    write_tensors(layout.compensation(RESTORED), tensors, {"pruned": model_digest(layout.pruned(PRUNED))})
    write_document(layout.training(RESTORED), {"heads": [[1, 2]], "runs": []})
    write_tensors(layout.components(PRUNED), {"singular_values": torch.ones(offset.shape)}, {})
    heads = [(layer, head) for layer in range(pico.LAYERS) for head in range(pico.HEADS)]
    rest = dict.fromkeys(("accuracy", "log_loss", "energy"), 0.5)
    rows = [{"layer": a, "head": b, "score": 1.0, "rank": n} | rest for n, (a, b) in enumerate(heads)]
    write_table(layout.heads(PRUNED), rows, HEADS, {"score": "paper"})


def test_every_metrics_file_has_the_documented_keys(layout: Layout) -> None:
    for cell in (DENSE, PRUNED, RESTORED):
        found = read_json(layout.metrics(cell))
        assert set(found["perplexity"]) == {"corpus", "tokens", "value"}
        assert set(found["tasks"]["t"]) == {"metric", "value", "stderr", "n", "version", "averaged", "shots"} | {
            "aggregation",
            "higher_is_better",
            "metrics",
        }
        assert found["tasks"]["t"]["metrics"] == {
            "acc": {name: found["tasks"]["t"][name] for name in ("value", "stderr")}
        }
        assert {"token_perplexity", "word_perplexity", "bits_per_byte", "file_bytes", "generation"} <= set(found)
        assert not {"seconds", "versions"} & set(found), "results only"
        details = read_json(layout.details(cell))
        assert details["peak_memory_bytes"] > 0
        assert details["seconds"]["total"] > 0 and {"torch", "python"} <= set(details["versions"])
        assert details["latency"]["seconds"] > 0
        assert len(read_table(layout.samples(cell), SAMPLES)) == 12
    assert set(read_json(layout.metrics(RESTORED))["recovered"]) >= {"mean", "ci95", "method"}
    assert read_json(layout.details(RESTORED))["latency"]["ratio"] > 0


def test_all_models_answer_the_same_items_and_are_held_against_dense(layout: Layout) -> None:
    digests = [[row["digest"] for row in read_table(layout.samples(c), SAMPLES)] for c in (DENSE, PRUNED, RESTORED)]
    assert digests[0] == digests[1] == digests[2]
    dense, pruned, restored = (read_json(layout.metrics(cell)) for cell in (DENSE, PRUNED, RESTORED))
    assert dense["generation"]["kl_to_dense"] == 0
    assert dense["generation"]["greedy_agreement"] == 1
    assert min(pruned["generation"]["kl_to_dense"], restored["generation"]["kl_to_dense"]) > 0
    told = [read_json(layout.details(cell))["pooled"] for cell in (PRUNED, RESTORED)]
    assert [set(each) for each in told] == [{"dense"}, {"dense", "pruned"}]
    assert told[1]["pruned"]["difference"] == pytest.approx(restored["mean"] - pruned["mean"])


def test_held_out_texts_are_scored_one_by_one_and_compared(layout: Layout) -> None:
    rows = {cell: read_table(layout.text_scores(cell), TEXT_SCORES) for cell in (DENSE, PRUNED, RESTORED)}
    loss = {}
    for cell, own in rows.items():
        tokens = sum(row["tokens"] for row in own)
        loss[cell] = -sum(row["log_likelihood"] for row in own) / tokens
        shown = read_json(layout.metrics(cell))["perplexity"]
        assert (shown["tokens"], shown["value"]) == (tokens, pytest.approx(math.exp(loss[cell]), rel=1e-6))
    found = read_json(layout.details(RESTORED))["heldout"]
    for name, cell in (("dense", DENSE), ("pruned", PRUNED)):
        assert found[name]["difference"] == pytest.approx(loss[RESTORED] - loss[cell], rel=1e-6)
        assert found[name]["ci95"][0] < found[name]["difference"] < found[name]["ci95"][1]
        assert found[name]["n"] == len(rows[cell])
    assert set(read_json(layout.details(PRUNED))["heldout"]) == {"dense"}
    assert "heldout" not in read_json(layout.details(DENSE))


def test_texts_are_scored_by_the_pruned_model_with_its_compensation_once(layout: Layout) -> None:
    """Against hooks: an offset that is folded twice, or into another layer, gives other numbers."""
    model = load_model(layout.pruned(PRUNED), torch.float32, torch.device("cpu"))
    texts = read_texts(layout.corpus(DENSE) / "heldout.parquet")
    pruned = log_likelihoods(model, texts)
    with compensated(model, read_compensation(layout.compensation(RESTORED))[0]):
        restored = log_likelihoods(model, texts)
    for cell, expected in ((PRUNED, pruned), (RESTORED, restored)):
        found = [row["log_likelihood"] for row in read_table(layout.text_scores(cell), TEXT_SCORES)]
        assert found == pytest.approx(expected, rel=1e-5)
    assert restored != pytest.approx(pruned, rel=1e-3)


def test_details_hold_what_the_report_draws(layout: Layout) -> None:
    assert len(read_json(layout.details(PRUNED))["layers"]) == pico.LAYERS
    details = read_json(layout.details(RESTORED))
    assert details["heads"]["ranks"] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert details["heads"]["chosen"] == [[1, 2]]
    assert details["spectra"] == [[pytest.approx(1 / pico.HEAD_DIM)] * pico.HEAD_DIM] * pico.LAYERS
    assert read_json(layout.details(PRUNED))["packed_bytes"] < read_json(layout.metrics(PRUNED))["file_bytes"]
    text = markdown(read_results([DENSE, PRUNED, RESTORED], layout), ReportConfig(), [])
    assert "| dense, int8 |" in text and "| dense, int4 |" in text
    assert "What the bytes buy: the pruned model without its zeros takes" in text


def test_how_texts_end_stands_beside_how_the_dense_models_do(layout: Layout) -> None:
    dense, pruned = (read_json(layout.details(cell))["completions"] for cell in (DENSE, PRUNED))
    assert dense["dense"] == dense["greedy"] == pruned["dense"]
    for way in ("greedy", "sampled"):
        assert 0 <= pruned[way]["finished"] <= 1 and 0 <= pruned[way]["length"] <= CONFIG.generation.new_tokens


def test_other_items_than_the_dense_models_are_an_error(layout: Layout) -> None:
    before = layout.metrics(PRUNED).read_bytes()
    tasks = layout.corpus(DENSE) / "tasks"
    write_table(tasks / "t.parquet", _items(gold=1), ITEMS)
    with pytest.raises(BadInput, match=r"measured differently in the items of task 't': run `dvc repro .*_dense@m`"):
        run_pruned(PRUNED, CONFIG, ENTRY, layout)
    write_table(tasks / "t.parquet", _items(), ITEMS)
    assert layout.metrics(PRUNED).read_bytes() == before
    assert not list(layout.work.iterdir()), "nothing half-written is left"


@pytest.mark.parametrize("part", SWAPS)
@pytest.mark.parametrize("number", [0, 1], ids=["dense", "pruned"])
def test_a_model_is_never_held_against_one_that_was_measured_differently(
    layout: Layout, tmp_path: Path, part: str, number: int
) -> None:
    elsewhere, cell = Layout(tmp_path), (DENSE, PRUNED)[number]
    for each in (DENSE, PRUNED):
        elsewhere.samples(each).parent.mkdir(parents=True, exist_ok=True)
        for path in (layout.samples, layout.text_scores):
            shutil.copyfile(path(each), getattr(elsewhere, path.__name__)(each))
    ours = read_fingerprint(layout.samples(RESTORED), RESTORED)
    rows, tasks = read_table(layout.samples(RESTORED), SAMPLES), read_json(layout.metrics(RESTORED))["tasks"]
    texts = read_table(layout.text_scores(RESTORED), TEXT_SCORES)
    outcome = Outcome(cell=RESTORED, rows=rows, texts=texts, tasks=tasks, fingerprint=ours)
    assert versus(outcome, [DENSE, PRUNED], elsewhere, samples=100, seed=0)[0]["recovered"]
    other = {MEASURED: swapped(ours, part).as_text()}
    write_table(elsewhere.samples(cell), read_table(elsewhere.samples(cell), SAMPLES), SAMPLES, other)
    with pytest.raises(BadInput, match=re.escape(SWAPS[part])) as caught:
        versus(outcome, [DENSE, PRUNED], elsewhere, samples=100, seed=0)
    assert str(caught.value).startswith(f"{cell} ({cell.kind}) and m wanda-0.5 0.1 (restored) cannot be compared")
    assert str(caught.value).endswith(f"run `dvc repro --force --single-item {cell.evaluation}`")


def _edit_task(layout: Layout, **changes: Any) -> None:
    path = layout.corpus(DENSE) / "tasks" / "t.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "config", "said"),
    [
        (
            {"metric_list": [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}]},
            {},
            r"the metric of task 't' \(acc against acc_norm\)",
        ),
        ({"doc_to_text": "w5 {{question}}"}, {}, "the prompts of task 't'"),
        ({"metadata": {"version": 2.0}}, {}, r"the version of task 't' \(1.0 against 2.0\)"),
        ({"description": ""}, {"limit": 5}, r"evaluate.limit \(None against 5\)"),
        ({}, {"perplexity_tokens": 16}, r"evaluate.perplexity_tokens \(2048 against 16\)"),
    ],
)
def test_a_task_that_was_edited_in_between_is_told_by_name_and_nothing_is_written(
    layout: Layout, changes: dict[str, Any], config: dict[str, Any], said: str
) -> None:
    """As a user does it: dense and pruned are there, the task file changes, one head ratio more is evaluated."""
    before, path = layout.metrics(RESTORED).read_bytes(), layout.corpus(DENSE) / "tasks" / "t.yaml"
    task = path.read_text()
    _edit_task(layout, **changes)
    try:
        with pytest.raises(BadInput, match=said) as caught:
            run_restored(RESTORED, CONFIG.model_copy(update=config), ENTRY, layout)
    finally:
        path.write_text(task)
    assert str(caught.value).endswith("--single-item evaluate_dense@m evaluate_pruned@m-wanda-0.5`")
    assert layout.metrics(RESTORED).read_bytes() == before


@pytest.mark.parametrize("run", [run_pruned, run_restored])
@pytest.mark.parametrize(
    ("config", "entry", "said"),
    [
        ({"limit": 5}, {}, r"evaluate.limit \(None against 5\)"),
        ({}, {"dtype": "bfloat16"}, r"the dtype that the model computed in \(float32 against bfloat16\)"),
    ],
)
def test_what_is_known_beforehand_is_refused_before_anything_is_computed(
    run: Callable[..., None],
    config: dict[str, Any],
    entry: dict[str, Any],
    said: str,
    layout: Layout,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def computes(*_: object, **__: object) -> None:
        raise AssertionError("hours would be lost")

    for name in ("run_harness", "text_scores", "block_perplexity", "word_perplexity"):
        monkeypatch.setattr(f"restorelcc.stages.evaluate.evaluation.{name}", computes)
    cell = PRUNED if run is run_pruned else RESTORED
    before = layout.metrics(cell).read_bytes()
    with pytest.raises(BadInput, match=said):
        run(cell, CONFIG.model_copy(update=config), ENTRY.model_copy(update=entry), layout)
    assert layout.metrics(cell).read_bytes() == before


def test_other_held_out_texts_are_told_from_another_tokenizer(layout: Layout) -> None:
    heldout = layout.corpus(DENSE) / "heldout.parquet"
    before = heldout.read_bytes()
    write_texts(heldout, [_words(12, n + 1) for n in range(10)])
    try:
        with pytest.raises(BadInput, match="measured differently in the held-out texts:"):
            run_pruned(PRUNED, CONFIG, ENTRY, layout)
    finally:
        heldout.write_bytes(before)


def test_tasks_of_every_kind_are_evaluated_and_compared(layout: Layout, tmp_path: Path) -> None:
    shutil.copytree(layout.root, tmp_path, dirs_exist_ok=True)
    elsewhere, folder = Layout(tmp_path), tmp_path / "own"
    for kind in KINDS:
        write_task(folder, kind)
    entry = ENTRY.model_copy(update={"tasks": (str(folder),)})
    run_dense(DENSE, CONFIG, entry, elsewhere)
    run_pruned(PRUNED, CONFIG, entry, elsewhere)
    run_restored(RESTORED, CONFIG, entry, elsewhere)
    found, details = read_json(elsewhere.metrics(RESTORED)), read_json(elsewhere.details(RESTORED))
    counted = {name for name, task in found["tasks"].items() if task["averaged"]}
    assert counted == {"t", "choice", "normed", "written"}
    assert found["mean"] == pytest.approx(sum(found["tasks"][name]["value"] for name in counted) / 4)
    assert details["pooled"]["pruned"]["n"] == 4 * 12
    assert set(details["versus"]["dense"]) == counted | {"last_word", "rolling", "brier"}
    for name in ("last_word", "rolling", "brier"):
        own = details["versus"]["dense"][name]
        assert own["second"] == pytest.approx(found["tasks"][name]["value"])
        assert own["ci95"][0] <= own["difference"] <= own["ci95"][1]
    paths = [elsewhere.metrics(cell) for cell in (DENSE, RESTORED)]
    printed = CliRunner().invoke(app, ["compare", *map(str, paths), "--samples", "200"])
    assert printed.exit_code == 0, printed.exception
    assert "classes, mcc" in printed.stdout and "rolling" in printed.stdout
    results = read_results([DENSE, PRUNED, RESTORED], elsewhere)
    assert "| in the mean |" in markdown(results, ReportConfig(), [])


def test_without_any_accuracy_nothing_is_averaged_and_the_reason_is_given(layout: Layout, tmp_path: Path) -> None:
    shutil.copytree(layout.root, tmp_path, dirs_exist_ok=True)
    elsewhere = Layout(tmp_path)
    write_task(tmp_path / "own", "rolling")
    write_document(elsewhere.corpus(DENSE) / "tasks" / "tasks.json", {"embedded": []})
    entry = ENTRY.model_copy(update={"tasks": ("own",)})
    run_dense(DENSE, CONFIG, entry, elsewhere)
    run_pruned(PRUNED, CONFIG, entry, elsewhere)
    run_restored(RESTORED, CONFIG, entry, elsewhere)
    found = read_json(elsewhere.metrics(RESTORED))
    assert found["mean"] is None
    assert found["recovered"] == {"mean": None, "ci95": None, "reason": "no task is measured by an accuracy"}
    text = markdown(read_results([DENSE, PRUNED, RESTORED], elsewhere), ReportConfig(), [])
    assert "No share of the lost accuracy can be given" in text


def test_a_perplexity_per_word_beyond_all_numbers_ends_no_stage(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a language without blanks, where a text is one word."""
    from lm_eval.api.task import ConfigurableTask

    monkeypatch.setattr(ConfigurableTask, "count_words", lambda *_: 1)
    shutil.copytree(layout.root, tmp_path, dirs_exist_ok=True)
    elsewhere = Layout(tmp_path)
    write_task(tmp_path / "own", "rolling", [{"question": _words(400, n)} for n in range(4)])
    write_document(elsewhere.corpus(DENSE) / "tasks" / "tasks.json", {"embedded": []})
    entry = ENTRY.model_copy(update={"tasks": ("own",)})
    run_dense(DENSE, CONFIG, entry, elsewhere)
    assert read_json(elsewhere.metrics(DENSE))["tasks"]["rolling"]["value"] is None
    run_pruned(PRUNED, CONFIG, entry, elsewhere)
    found = read_json(elsewhere.details(PRUNED))["versus"]["dense"]["rolling"]
    assert (found["first"], found["second"], found["difference"], found["ci95"]) == (None, None, None, None)


def test_random_weights_trip_the_sanity_gate_and_nothing_is_written(layout: Layout) -> None:
    before = layout.metrics(DENSE).stat().st_mtime_ns
    with pytest.raises(
        StageFailed, match=r"the dense model m looks broken: its perplexity .* set evaluate.sanity_gate"
    ):
        run_dense(DENSE, CONFIG.model_copy(update={"sanity_gate": True}), ENTRY, layout)
    assert layout.metrics(DENSE).stat().st_mtime_ns == before


def test_a_model_that_gives_no_numbers_ends_in_one_sentence(layout: Layout, tmp_path: Path) -> None:
    """As float16 does where activations overflow: text cannot be drawn from it either."""
    shutil.copytree(layout.root, tmp_path, dirs_exist_ok=True)
    elsewhere, broken = Layout(tmp_path), pico.pico()
    broken.model.norm.weight[0] = float("nan")
    save_checkpoint(elsewhere.pruned(PRUNED), broken, pico.word_tokenizer())
    with pytest.raises(StageFailed, match="no finite number for 10 of 10 held-out texts: its weights are damaged"):
        run_pruned(PRUNED, CONFIG, ENTRY, elsewhere)


def test_texts_longer_than_the_models_context_are_cut_to_it(layout: Layout) -> None:
    """OPT has an embedding for each of 64 positions, and none for a 65th."""
    other = Cell("short", "wanda-0.5")
    save_checkpoint(layout.pruned(other), pico.pico("opt"), pico.word_tokenizer())
    write_document(layout.pruned(other) / "sparsity.json", {"layers": []})
    write_texts(layout.corpus(other) / "heldout.parquet", [_words(200, n) for n in range(3)])
    write_document(layout.corpus(other) / "tasks" / "tasks.json", {"embedded": []})
    run_pruned(other, CONFIG, ENTRY, layout)
    assert read_json(layout.metrics(other))["perplexity"]["tokens"] == 3 * 63


def test_a_checkpoint_with_another_context_is_not_held_against_the_dense_model(layout: Layout, tmp_path: Path) -> None:
    """The same weights, whose config.json of another tool allows fewer tokens: perplexity is of shorter sequences."""
    shutil.copytree(layout.root, tmp_path, dirs_exist_ok=True)
    elsewhere, path = Layout(tmp_path), Layout(tmp_path).pruned(PRUNED) / "config.json"
    context = read_json(path)["max_position_embeddings"]
    write_json(path, read_json(path) | {"max_position_embeddings": 8})
    with pytest.raises(BadInput, match=rf"measured differently in the model's context \({context} against 8\): run"):
        run_pruned(PRUNED, CONFIG, ENTRY, elsewhere)


def test_a_model_that_repeats_one_token_is_flagged(layout: Layout) -> None:
    stuck = pico.pico()
    stuck.lm_head.weight.zero_()
    stuck.model.norm.weight.fill_(1.0)
    stuck.lm_head.weight[7] = stuck.model.embed_tokens.weight.mean(0)
    # Whatever the last hidden state is, it points the way of one token's row more than of any other.
    stuck.model.norm.weight.zero_()
    other = Cell("stuck", "wanda-0.5")
    save_checkpoint(layout.pruned(other), stuck, pico.word_tokenizer())
    write_document(layout.pruned(other) / "sparsity.json", {"layers": []})
    for name in ("heldout.parquet",):
        target = layout.corpus(other) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((layout.corpus(DENSE) / name).read_bytes())
    write_document(layout.corpus(other) / "tasks" / "tasks.json", {"embedded": []})
    run_pruned(other, CONFIG, ENTRY, layout)
    found = read_json(layout.metrics(other))["generation"]
    assert found["degenerate"]
    assert "one token over and over" in found["reasons"][0]
    assert found["kl_to_dense"] is None, "there is no dense model of this name"


def test_an_unknown_task_is_refused_before_the_model_is_read(layout: Layout) -> None:
    other = Cell("unknown")
    write_document(layout.corpus(other) / "tasks" / "tasks.json", {"embedded": []})
    with pytest.raises(BadInput, match=r"'winogrand', which is neither .* did you mean 'winogrande'"):
        run_dense(other, CONFIG, ENTRY.model_copy(update={"tasks": ("winogrand",)}), layout)


def test_evaluation_from_disk_equals_one_in_memory(layout: Layout, tmp_path: Path) -> None:
    shutil.copytree(layout.root, tmp_path, dirs_exist_ok=True)
    spread = ENTRY.model_copy(update={"device_map": "auto", "max_memory": {"cpu": "20KB"}})
    elsewhere = Layout(tmp_path)
    for run, cell in ((run_dense, DENSE), (run_pruned, PRUNED), (run_restored, RESTORED)):
        for path in (elsewhere.metrics(cell), elsewhere.samples(cell), elsewhere.details(cell)):
            path.unlink()
        run(cell, CONFIG, spread, elsewhere)
        found, expected = (read_metrics(each.metrics(cell)) for each in (elsewhere, layout))
        assert found | {"seconds": 0} == expected | {"seconds": 0}
        assert read_table(elsewhere.samples(cell), SAMPLES) == read_table(layout.samples(cell), SAMPLES)
    assert "ratio" not in read_json(elsewhere.details(RESTORED))["latency"], "it would time the disk"
