"""The pipeline as a user runs it, `dvc repro` on a grid of a pico model: what runs, what is written, what stays."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.recovery_study import Cost, measured_cell
from benchmarks.smollm2_page import write_smollm2
from benchmarks.study_cells import PAPER, StudyCell, Subject
from restorelcc.base.cell import Cell
from restorelcc.base.documents import read_document, write_json
from restorelcc.base.layout import Layout
from tests.docs_commands import Command, run, run_in_a_finished_project
from tests.flows.servers import forked_stages
from tests.whole_project import Project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, forked: Path) -> Project:
    project = Project(tmp_path_factory.mktemp("whole") / "project", socket=forked)
    ran = project.repro()
    assert ran == {
        "inputs@tiny",
        "corpus@tiny",
        "dense@tiny",
        "capture_dense@tiny",
        "evaluate_dense@tiny",
        "report",
    } | {f"{stage}@tiny-wanda-0.5" for stage in ("prune", "capture_pruned", "extract", "probe", "evaluate_pruned")} | {
        f"{stage}@tiny-wanda-0.5-0.25" for stage in ("compensate", "evaluate_restored")
    }
    return project


def test_the_commands_of_the_docs_run_and_print_what_the_docs_show(
    project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    run_in_a_finished_project(project, capfd)


@pytest.mark.parametrize("verb", ["report", "table", "run"])
def test_the_results_as_json_are_all_that_is_on_stdout(
    verb: str, project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run(Command("", f"restorelcc {verb} --json", None), project, capfd)
    assert done.code == 0, done.err
    assert json.loads(done.out) == read_document(project.folder / "data/report/results.json")


METRIC_KEYS = {"model", "pruning", "head_ratio", "tasks", "mean", "perplexity"}
METRIC_KEYS |= {"params_total", "params_nonzero", "params_added"}


def test_metrics_have_the_documented_keys(project: Project) -> None:
    for name in ("dense", "wanda-0.5/pruned", "wanda-0.5/heads-0.25"):
        metrics = project.json(f"data/metrics/tiny/{name}.json")
        assert set(metrics) >= METRIC_KEYS, name
        assert not {"seconds", "versions"} & set(metrics), "they are no results"
        assert set(metrics["perplexity"]) == {"corpus", "tokens", "value"}
        for task in metrics["tasks"].values():
            assert set(task) >= {"metric", "value", "stderr", "n"}
        assert metrics["mean"] == pytest.approx(
            sum(t["value"] for t in metrics["tasks"].values()) / len(metrics["tasks"])
        )
    assert set(metrics["recovered"]) >= {"mean", "ci95", "method"}
    assert metrics["recovered"]["method"] == "paired bootstrap"
    assert (metrics["pruning"], metrics["head_ratio"]) == ("wanda-0.5", 0.25)


def test_the_study_of_a_real_model_reads_what_the_stages_wrote(project: Project, tmp_path: Path) -> None:
    layout, study = Layout(project.folder), StudyCell(Subject("tiny", "tiny", budget="quick"), "wanda-0.5", PAPER, 0)
    later = dataclasses.replace(study, seed=1)  # its stage `evaluate` does not run
    found, texts_alone = (measured_cell(layout, each, Cost(1.0, 2.0, None)) for each in (study, later))
    kept = sorted(project.folder.glob("measured-*.json"))
    assert len(kept) == 2, "of dense and pruned, which are the same for every method"
    for path in kept:
        path.unlink()
    cells = {"dense": Cell("tiny"), "pruned": Cell("tiny", "wanda-0.5"), "restored": Cell("tiny", "wanda-0.5", "0.25")}
    for name, cell in cells.items():
        metrics = read_document(layout.metrics(cell))
        assert found[name]["accuracy"] == metrics["mean"]
        assert found[name]["tasks"] == {task: each["value"] for task, each in metrics["tasks"].items()}
        assert len(found[name]["log_likelihood"]) == len(found[name]["tokens"]) > 1
        assert max(found[name]["log_likelihood"]) < 0 < found[name]["response_loss"]
    assert found["versus"] == read_document(layout.details(cells["restored"]))["pooled"]
    assert found["recovered_accuracy"] == read_document(layout.metrics(cells["restored"]))["recovered"]
    assert (found["zeros_kept"], found["cpu_seconds"], found["sparsity"]) == (True, 2.0, 0.5)
    scored = ("log_likelihood", "tokens", "response_loss")
    for name in cells:
        assert texts_alone[name] == {key: found[name][key] for key in scored}
    assert not {"versus", "rivals", "variants"} & set(texts_alone)
    for each, numbers in ((study, found), (later, texts_alone)):
        write_json(tmp_path / "cells" / f"{each.name}.json", numbers)
    write_smollm2(tmp_path, [study, later], "quick", "the command")
    assert "| heads, 25 % (the paper) | 2 | " in (tmp_path / "smollm2.md").read_text()


def test_the_compensation_is_what_the_architecture_says(project: Project) -> None:
    base = project.folder / "data/tiny/wanda-0.5"
    parts = load_file(base / "components.safetensors")
    assert parts["directions"].shape == (2, 4, 6, 6)
    assert parts["singular_values"].shape == parts["loadings"].shape == (2, 4, 6)
    compensation = load_file(base / "heads-0.25/compensation.safetensors")
    assert compensation["offset"].shape == (2, 4, 6)
    assert compensation["heads"].shape == (2, 2)
    assert compensation["beta"].shape == compensation["bias"].shape == (2, 6)
    chosen = {tuple(pair) for pair in compensation["heads"].tolist()}
    assert {tuple(p) for p in compensation["offset"].abs().sum(-1).nonzero().tolist()} == chosen
    for (layer, head), beta, bias in zip(
        compensation["heads"].tolist(), compensation["beta"], compensation["bias"], strict=True
    ):
        expected = beta @ parts["directions"][layer, head] + bias
        torch.testing.assert_close(compensation["offset"][layer, head], expected, atol=1e-6, rtol=1e-6)


def test_sparsity_is_the_same_before_and_after(project: Project) -> None:
    from restorelcc.compensation.fold import fold
    from restorelcc.models.architectures import prunable_linears
    from restorelcc.models.checkpoints import load_model

    base = project.folder / "data/tiny/wanda-0.5"
    model = load_model(base / "pruned", torch.float32, torch.device("cpu"))
    before = {name: linear.weight.clone() for _, name, linear in prunable_linears(model)}
    fold(model, load_file(base / "heads-0.25/compensation.safetensors")["offset"])
    reported = project.json("data/tiny/wanda-0.5/pruned/sparsity.json")["tensors"]
    for _, name, linear in prunable_linears(model):
        assert torch.equal(linear.weight, before[name])
        assert int((linear.weight == 0).sum()) == reported[f"{name}.weight"]["zeros"] == linear.weight.numel() // 2
    metrics = "data/metrics/tiny/wanda-0.5"
    assert project.json(f"{metrics}/heads-0.25.json")["sparsity"] == project.json(f"{metrics}/pruned.json")["sparsity"]


def test_only_what_a_change_touches_runs_again(project: Project) -> None:
    assert project.repro() == set()
    project.set("grid", "head_ratio", [0.25, 0.5])
    assert project.repro() == {"compensate@tiny-wanda-0.5-0.5", "evaluate_restored@tiny-wanda-0.5-0.5", "report"}
    project.set("grid", "head_ratio", [0.25])
    project.set("grid", "recovery", ["meanshift"])
    assert project.repro() == {f"{stage}@tiny-wanda-0.5-meanshift" for stage in ("recover", "evaluate_recovered")} | {
        "report"
    }
    assert "| meanshift |" in (project.folder / "data/report/report.md").read_text()
    project.set("grid", "recovery", [])
    assert project.repro() <= {"report"}, "going back computes nothing"


def test_a_stage_that_fails_leaves_nothing_half_written(project: Project) -> None:
    data = project.folder / "data"
    before = {str(path): path.stat().st_mtime_ns for path in data.rglob("*")}
    work = {path.name for path in (project.folder / ".work").iterdir()} | {"locks"}
    output = project.run(
        "restorelcc", "prune", "--model", "tiny", "--pruning", "wanda-3of7", code=2
    )  # 7 does not divide any row
    assert "multiple of 7" in output
    assert {str(path): path.stat().st_mtime_ns for path in data.rglob("*")} == before
    assert {path.name for path in (project.folder / ".work").iterdir()} <= work


def test_a_second_run_from_nothing_is_byte_identical(project: Project, tmp_path: Path) -> None:
    """Forks of another process, whose sets are in another order (PYTHONHASHSEED)."""
    with forked_stages(tmp_path / "forked", alone=True, PYTHONHASHSEED="7") as socket:
        again = Project(tmp_path / "again", socket=socket)
        again.repro()
    base = "data/tiny/wanda-0.5"
    for name in (
        f"{base}/components.safetensors",
        f"{base}/heads.parquet",
        f"{base}/heads-0.25/compensation.safetensors",
    ):
        assert (again.folder / name).read_bytes() == (project.folder / name).read_bytes(), name
    for name in ("dense", "wanda-0.5/pruned", "wanda-0.5/heads-0.25"):
        ours, theirs = ((p.folder / f"data/metrics/tiny/{name}.json").read_bytes() for p in (project, again))
        assert ours == theirs, name
