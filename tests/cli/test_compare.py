"""`restorelcc compare`: two results, item by item."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from restorelcc.base.cell import Cell
from restorelcc.base.documents import cell_of, read_json, write_document
from restorelcc.base.errors import BadInput
from restorelcc.base.fingerprint import Fingerprint
from restorelcc.base.tables import MEASURED, SAMPLES, TEXT_SCORES, read_metadata, read_table, write_table
from restorelcc.cli.app import app
from restorelcc.cli.compare import sentence, texts_sentence
from restorelcc.pipeline.comparison import comparison
from tests.fingerprints import SWAPS, swapped
from tests.stages.report.cells import CELLS, FINGERPRINT, metrics


def _result(
    folder: Path, name: str, scores: list[int], digest: str = "d", number: int = 1, how: Fingerprint | None = None
) -> Path:
    path = folder / f"{name}.json"
    content = metrics(CELLS[number], sum(scores) / len(scores))
    task = FINGERPRINT.tasks["world_arc"]
    measured = replace(FINGERPRINT, tasks={"t0": task, "t1": task})
    content["tasks"] = dict.fromkeys(measured.tasks, content["tasks"]["world_arc"])
    content["measured"] = (how or measured).digest
    write_document(path, content)
    rows = [
        {"task": f"t{n % 2}", "item_id": n, "digest": f"{digest}{n}", "gold": 0, "prediction": 0}
        | {"correct": bool(score), "score": float(score), "weight": 1.0, "log_likelihoods": []}
        for n, score in enumerate(scores)
    ]
    write_table(path.with_suffix(".parquet"), rows, SAMPLES, {MEASURED: (how or measured).as_text()})
    return path


def test_a_planted_difference_is_printed_and_a_null_one_is_called_that(tmp_path: Path) -> None:
    worse = _result(tmp_path, "a", [1, 0] * 50)
    better = _result(tmp_path, "b", [1] * 90 + [0] * 10, number=3)
    printed = CliRunner().invoke(app, ["compare", str(worse), str(better)])
    assert printed.exit_code == 0
    assert "B is 40.0 points better than A on 100 items, beyond chance" in printed.stdout
    assert "a wanda-0.5 heads 0.25" in printed.stdout
    same = comparison([worse], [worse], samples=200, seed=0)
    assert sentence(same).startswith("No difference beyond chance: B - A is 0.0 points")
    assert same["pooled"]["p"] == 1.0


def test_columns_that_do_not_fit_are_named(tmp_path: Path) -> None:
    paths = [_result(tmp_path, name, [1, 0] * 20) for name in "ab"]
    narrow = {"FORCE_COLOR": "1", "COLUMNS": "50"}
    printed = CliRunner().invoke(app, ["compare", *map(str, paths)], env=narrow).stdout
    assert "Not shown at this width: A only, B only; --json has them." in printed
    assert "Not shown" not in CliRunner().invoke(app, ["compare", *map(str, paths)]).stdout


def test_one_item_tells_nothing_beyond_chance(tmp_path: Path) -> None:
    paths = [_result(tmp_path, name, scores) for name, scores in (("a", [0, 0, 0]), ("b", [1, 1, 1]))]
    printed = CliRunner().invoke(app, ["compare", *map(str, paths)]).stdout
    assert "B - A is 100.0 points on 3 items; a task has a single item, so there is no interval." in printed
    assert "beyond chance" not in printed


def test_a_refusal_names_the_stage_as_the_grid_writes_its_head_ratio(tmp_path: Path) -> None:
    of_ratio = dict.fromkeys(("heads-1.0", "copy"), metrics(Cell("a", "wanda-0.5", "1.0"), 0.5))
    for name, content in of_ratio.items():
        assert cell_of(content, tmp_path / f"{name}.json").evaluation == "evaluate_restored@a-wanda-0.5-1.0"
    assert cell_of(of_ratio["copy"], tmp_path / "heads-1.json").head_ratio == "1"
    assert cell_of(of_ratio["copy"], tmp_path / "heads-0.25.json").head_ratio == "1.0", "the file is of another ratio"


def test_json_holds_both_sides_and_every_task(tmp_path: Path) -> None:
    first, second = _result(tmp_path, "a", [1, 0] * 20), _result(tmp_path, "b", [1, 1] * 20)
    found = json.loads(CliRunner().invoke(app, ["compare", str(first), str(second), "--json"]).stdout)
    assert (found["a"]["mean"], found["b"]["mean"]) == (0.5, 1.0)
    assert found["tasks"]["t1"]["difference"] == 1.0
    assert found["tasks"]["t0"]["difference"] == 0.0
    assert found["pooled"]["won"] == 20


def test_seeds_are_averaged(tmp_path: Path) -> None:
    base = _result(tmp_path, "a", [0] * 40)
    seeds = [_result(tmp_path, f"b{n}", [1] * (10 * n) + [0] * (40 - 10 * n)) for n in (1, 2, 3)]
    found = comparison([base], seeds, samples=500, seed=0)
    assert found["pooled"]["difference"] == pytest.approx(0.5)
    assert found["b"]["seeds"] == 3
    assert found["b"]["mean"] == pytest.approx(0.5)


def _right(count: int) -> list[int]:
    return [1] * count + [0] * (100 - count)


def test_the_recovered_share_is_of_all_seeds_and_of_the_projects_own_models(tmp_path: Path) -> None:
    """Dense 90 %, pruned 50 %, and three seeds of 60, 70 and 80 %: 10, 20 and 30 points of 40."""
    folder = tmp_path / "data" / "metrics" / "a"
    (folder / "wanda-0.5").mkdir(parents=True)
    _result(folder, "dense", _right(90), number=0)
    pruned = _result(folder / "wanda-0.5", "pruned", _right(50))
    one = _result(folder / "wanda-0.5", "heads-0.25", _right(60), number=3)
    others = []
    for count in (70, 80):
        (aside := tmp_path / f"seed-{count}").mkdir()
        others.append(_result(aside, "heads-0.25", _right(count), number=3))
    alone = comparison([pruned], [one], samples=1000, seed=0)
    assert alone["a"]["recovered"] is None, "it is what there is to recover from"
    assert alone["b"]["recovered"]["mean"] == pytest.approx(0.25)
    found = comparison([pruned], [one, *others], samples=1000, seed=0)["b"]["recovered"]
    assert (found["mean"], found["seeds"]) == (pytest.approx(0.5), 3)
    low, high = found["ci95"]
    assert low < 0.2 and high > 0.8, "three seeds so far apart say little"
    printed = CliRunner().invoke(app, ["compare", str(pruned), str(one), *(f"--also-b={path}" for path in others)])
    assert "B recovered 50.0 % of the mean accuracy that pruning lost, 95 % interval over items and 3 seeds [" in (
        printed.stdout
    )


def test_the_models_of_a_recovered_share_can_be_named(tmp_path: Path) -> None:
    dense = _result(tmp_path, "d", _right(90), number=0)
    pruned, one = _result(tmp_path, "p", _right(50)), _result(tmp_path, "h", _right(60), number=3)
    other = _result(tmp_path, "i", _right(70), number=3)
    found = comparison([one], [other], samples=200, seed=0)
    assert (found["a"]["recovered"], found["b"]["recovered"]) == (None, None), "they lie in no project"
    found = comparison([one], [other], samples=200, seed=0, dense=dense, pruned=pruned)
    assert [found[side]["recovered"]["mean"] for side in "ab"] == pytest.approx([0.25, 0.5])
    with pytest.raises(BadInput, match="neither A nor B was recovered from it"):
        comparison([one], [other], samples=200, seed=0, dense=pruned, pruned=pruned)
    digest = _result(tmp_path, "e", _right(90), digest="e", number=0)
    with pytest.raises(BadInput, match="answered different items"):
        comparison([one], [other], samples=200, seed=0, dense=digest, pruned=pruned)
    worse = _result(tmp_path, "w", _right(40), number=0)
    told = CliRunner().invoke(app, ["compare", *map(str, (one, other)), f"--dense={worse}", f"--pruned={pruned}"])
    assert "The share of the loss that B recovered is not known: pruning lost nothing." in told.stdout


def test_a_dense_model_of_another_measurement_is_told_and_stops_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "metrics" / "a"
    (folder / "wanda-0.5").mkdir(parents=True)
    _result(folder, "dense", _right(90), digest="e", number=0)
    pruned = _result(folder / "wanda-0.5", "pruned", _right(50))
    one = _result(folder / "wanda-0.5", "heads-0.25", _right(60), number=3)
    found = comparison([pruned], [one], samples=200, seed=0)
    assert found["pooled"]["difference"] == pytest.approx(0.1)
    assert "answered different items" in found["b"]["recovered"]["reason"]


def test_one_side_is_one_model_with_several_seeds(tmp_path: Path) -> None:
    base = _result(tmp_path, "a", [1, 0, 1, 0])
    seeds = [_result(tmp_path, f"b{n}", [1, 0, 1, n], number=3) for n in (0, 1)]
    changed = read_json(seeds[1])
    write_document(seeds[1], changed | {"perplexity": changed["perplexity"] | {"value": 4.5}})
    found = comparison([base], seeds, samples=200, seed=0)
    assert found["b"]["perplexity"] == pytest.approx((3.5 + 4.5) / 2)
    with pytest.raises(BadInput, match=r"one side is one pruning and one way to recover, with several training seeds"):
        comparison([base], [seeds[0], base], samples=200, seed=0)
    with pytest.raises(BadInput, match="is given twice as one side"):
        comparison([base], [seeds[0], seeds[0]], samples=200, seed=0)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    first = _result(tmp_path, "a", [1, 0, 1, 0])
    with pytest.raises(BadInput, match="answered different items of task 't0'"):
        comparison([first], [_result(tmp_path, "b", [1, 0, 1, 0], digest="e")], samples=200, seed=0)
    old = read_json(first) | {"schema": 1}
    write_document(tmp_path / "old.json", old)
    with pytest.raises(BadInput, match=r"old\.json was written by an older version \(metrics schema 1"):
        comparison([first], [tmp_path / "old.json"], samples=200, seed=0)
    write_document(tmp_path / "alone.json", read_json(first))
    with pytest.raises(BadInput, match=r"alone\.parquet is missing"):
        comparison([first], [tmp_path / "alone.json"], samples=200, seed=0)
    write_document(tmp_path / "other.json", {"a": 1})
    with pytest.raises(BadInput, match="holds no metrics"):
        comparison([first], [tmp_path / "other.json"], samples=200, seed=0)


@pytest.mark.parametrize("part", SWAPS)
def test_results_measured_in_different_ways_are_never_compared(tmp_path: Path, part: str) -> None:
    task = FINGERPRINT.tasks["world_arc"]
    how = swapped(replace(FINGERPRINT, tasks={"t0": task, "t1": task}), part)
    first, second = _result(tmp_path, "a", [1, 0] * 5), _result(tmp_path, "b", [1, 1] * 5, number=3, how=how)
    printed = CliRunner().invoke(app, ["compare", str(first), str(second)])
    assert isinstance(printed.exception, BadInput)
    assert "cannot be compared, they were measured differently in" in (sentence := str(printed.exception))
    assert SWAPS[part] in sentence
    rerun = "evaluate_pruned@a-wanda-0.5 evaluate_restored@a-wanda-0.5-0.25"
    assert sentence.endswith(f"run `dvc repro --force --single-item {rerun}`")
    with pytest.raises(BadInput, match="measured differently"):
        comparison([first], [first, second], samples=200, seed=0)


def test_samples_of_another_run_or_without_a_fingerprint_are_refused(tmp_path: Path) -> None:
    first, second = _result(tmp_path, "a", [1, 0] * 5), _result(tmp_path, "b", [1, 1] * 5)
    content = read_json(second)
    write_document(second, content | {"measured": "0" * 16})
    with pytest.raises(
        BadInput, match=r"b\.parquet belongs to another run than the metrics in its folder: run `dvc repro"
    ):
        comparison([first], [second], samples=200, seed=0)
    write_document(second, content)
    write_table(second.with_suffix(".parquet"), read_table(second.with_suffix(".parquet"), SAMPLES), SAMPLES)
    with pytest.raises(BadInput, match=r"b\.parquet does not say how it was measured, because an older version"):
        comparison([first], [second], samples=200, seed=0)


def test_a_task_that_is_no_accuracy_is_compared_but_not_pooled(tmp_path: Path) -> None:
    paths = []
    for name, offset in (("a", 0.0), ("b", 0.5)):
        path = _result(tmp_path, name, [1, 0] * 20)
        content, rows = read_json(path), read_table(path.with_suffix(".parquet"), SAMPLES)
        other = {"metric": "perplexity", "averaged": False, "aggregation": "perplexity", "higher_is_better": False}
        content["tasks"]["t1"] |= other
        for row in rows:
            if row["task"] == "t1":
                row["score"] = offset - 1.0 - 0.01 * row["item_id"]
        how = Fingerprint.from_text(read_metadata(path.with_suffix(".parquet"))[MEASURED], path, "")
        how = replace(how, tasks=how.tasks | {"t1": replace(how.tasks["t1"], metric="perplexity", averaged=False)})
        write_document(path, content | {"measured": how.digest})
        write_table(path.with_suffix(".parquet"), rows, SAMPLES, {MEASURED: how.as_text()})
        paths.append(path)
    found = comparison([paths[0]], [paths[1]], samples=500, seed=0)
    assert found["pooled"]["n"] == 20, "of t0 alone"
    low, high = found["tasks"]["t1"]["ci95"]
    assert low < found["tasks"]["t1"]["difference"] < high < 0, "less perplexity is a negative difference"
    printed = CliRunner().invoke(app, ["compare", *map(str, paths)]).stdout
    assert "Not in the mean, because its metric is not an accuracy: t1 (perplexity)." in printed
    assert "t1, perplexity" in printed


def test_a_perplexity_beyond_all_bounds_and_no_mean_are_printed(tmp_path: Path) -> None:
    path = _result(tmp_path, "a", [1, 0] * 5)
    content = read_json(path)
    content["perplexity"]["value"] = None
    write_document(path, content | {"mean": None})
    printed = CliRunner().invoke(app, ["compare", str(path), str(path)])
    assert printed.exit_code == 0, printed.exception
    assert "mean - %, perplexity -" in printed.stdout


@pytest.mark.parametrize(
    ("ci95", "count", "said"),
    [
        ([0.01, 0.3], 9, "B predicts the held-out texts worse than A, beyond chance: loss 1.0000 -> 1.2000 nats"),
        (
            [-0.01, 0.3],
            9,
            "No difference beyond chance on the held-out texts: loss 1.0000 -> 1.2000 nats a token, B - A",
        ),
        (None, 1, "Held-out texts: loss 1.0000 -> 1.2000 nats a token on 1 text, which has no interval."),
    ],
)
def test_the_sentence_on_texts_follows_their_interval(ci95: list[float] | None, count: int, said: str) -> None:
    found = texts_sentence({"first": 1.0, "second": 1.2, "difference": 0.2, "ci95": ci95, "n": count})
    assert found.startswith(said)


def test_held_out_texts_have_a_sentence_of_their_own(tmp_path: Path) -> None:
    paths = [_result(tmp_path, "a", [1, 0] * 20), _result(tmp_path, "b", [1, 0] * 20, number=3)]
    for path, loss in zip(paths, (2.0, 1.5), strict=True):
        rows = [
            {"text_id": n, "digest": f"d{n}", "tokens": 4, "log_likelihood": -4 * (loss + 0.1 * n)} for n in range(10)
        ]
        how = {MEASURED: read_metadata(path.with_suffix(".parquet"))[MEASURED]}
        write_table(path.with_suffix(".texts.parquet"), rows, TEXT_SCORES, how)
    found = comparison([paths[0]], [paths[1]], samples=200, seed=0)["heldout"]
    assert found["difference"] == pytest.approx(-0.5) and found["ci95"] == pytest.approx([-0.5, -0.5])
    printed = CliRunner().invoke(app, ["compare", *map(str, paths)]).stdout
    assert printed.endswith(
        "\nB predicts the held-out texts better than A, beyond chance: loss 2.4500 -> 1.9500 nats a token, "
        "B - A = -0.5000 [-0.5000, -0.5000] on 10 texts.\n"
    )
    for path in paths:  # the same measured without tasks
        bare = path.with_name(f"bare-{path.name}")
        how = {MEASURED: read_metadata(path.with_suffix(".parquet"))[MEASURED]}
        write_document(bare, read_json(path) | {"tasks": {}})
        write_table(bare.with_suffix(".parquet"), [], SAMPLES, how)
        shutil.copy(path.with_suffix(".texts.parquet"), bare.with_suffix(".texts.parquet"))
    bare_paths = [path.with_name(f"bare-{path.name}") for path in paths]
    told = CliRunner().invoke(app, ["compare", *map(str, bare_paths)]).stdout.splitlines()
    assert len(told) == 3 and told[2] == printed.splitlines()[-1]
    bare_paths[1].with_suffix(".texts.parquet").unlink()
    with pytest.raises(BadInput, match="measured without tasks and without texts"):
        comparison([bare_paths[0]], [bare_paths[1]], samples=200, seed=0)
    write_table(paths[1].with_suffix(".texts.parquet"), rows, TEXT_SCORES, {MEASURED: FINGERPRINT.as_text()})
    with pytest.raises(BadInput, match="another run"):
        comparison([paths[0]], [paths[1]], samples=200, seed=0)
    paths[1].with_suffix(".texts.parquet").unlink()
    assert comparison([paths[0]], [paths[1]], samples=200, seed=0)["heldout"] is None
