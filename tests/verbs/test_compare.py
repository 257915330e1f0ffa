"""`restorelcc compare`: two results, item by item."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from restorelcc.cli import app
from restorelcc.core.errors import BadInput
from restorelcc.io.documents import read_json, write_json
from restorelcc.io.sample_table import SAMPLES
from restorelcc.io.tables import write_table
from restorelcc.verbs.compare import comparison, sentence
from tests.report.cells import CELLS, metrics


def _result(folder: Path, name: str, scores: list[int], digest: str = "d", number: int = 1) -> Path:
    path = folder / f"{name}.json"
    content = metrics(CELLS[number], sum(scores) / len(scores))
    write_json(path, content)
    rows = [
        {"task": f"t{n % 2}", "item_id": n, "digest": f"{digest}{n}", "gold": 0, "prediction": 0}
        | {"correct": bool(score), "score": float(score), "log_likelihoods": []}
        for n, score in enumerate(scores)
    ]
    write_table(path.with_suffix(".parquet"), rows, SAMPLES)
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


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    first = _result(tmp_path, "a", [1, 0, 1, 0])
    with pytest.raises(BadInput, match="answered different items of task 't0'"):
        comparison([first], [_result(tmp_path, "b", [1, 0, 1, 0], digest="e")], samples=200, seed=0)
    old = read_json(first) | {"schema": 1}
    write_json(tmp_path / "old.json", old)
    with pytest.raises(BadInput, match=r"old\.json was written by an older version \(metrics schema 1"):
        comparison([first], [tmp_path / "old.json"], samples=200, seed=0)
    write_json(tmp_path / "alone.json", read_json(first))
    with pytest.raises(BadInput, match=r"alone\.parquet is missing"):
        comparison([first], [tmp_path / "alone.json"], samples=200, seed=0)
    write_json(tmp_path / "other.json", {"a": 1})
    with pytest.raises(BadInput, match="holds no metrics"):
        comparison([first], [tmp_path / "other.json"], samples=200, seed=0)
