"""The pipeline as a user runs it, `dvc repro` on a grid of a pico model: what runs, what is written, what stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.dag import ROOT

PICO: dict[str, Any] = {
    "grid": {"head_ratio": [0.25], "pruning": ["wanda-0.5"]},
    "corpus": {
        "microworld": {"documents": 600, "test_items": 20, "dev_items": 20, "train_pairs": 60, "valid_pairs": 20}
        | {"contrast_pairs": 40, "calibration_documents": 64}
    },
    "dense": {
        "architecture": {"layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 6, "width": 32, "ffn_width": 48},
        "pretrain": {"max_steps": 10, "decay_steps": 5, "eval_every": 10, "floor": 0.0},
    },
    "compensate": {"epochs": 1},
    # Ten steps leave the model at chance, which is what the sanity gate is there to stop.
    "evaluate": {"bootstrap_samples": 200, "sanity_gate": False, "generation": {"new_tokens": 8}},
}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    return base | {k: merged(base[k], v) if isinstance(v, dict) and k in base else v for k, v in over.items()}


class Project:
    """A copy of the project, with pico sizes unless told otherwise, in a git and DVC repository of its own."""

    def __init__(self, folder: Path, changes: dict[str, Any] = PICO) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
            shutil.copy(ROOT / name, folder / name)
        shutil.copytree(ROOT / "versions", folder / "versions")
        shutil.copytree(ROOT / "restorelcc", folder / "restorelcc", ignore=shutil.ignore_patterns("__pycache__"))
        self.write_params(merged(yaml.safe_load((ROOT / "params.yaml").read_text()), changes))
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "RESTORELCC_PROGRESS": "0",
        }
        self.run("git", "init", "--quiet")
        self.run("dvc", "init", "--quiet")

    def run(self, *command: str, code: int = 0) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, (
            f"{command} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        return done.stdout + done.stderr

    def repro(self) -> set[str]:
        """Run `dvc repro`; the stages that were executed (not restored from the cache)."""
        output = self.run("dvc", "repro")
        return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage ")}

    def params(self) -> dict[str, Any]:
        return yaml.safe_load((self.folder / "params.yaml").read_text())

    def write_params(self, content: dict[str, Any]) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def set(self, section: str, key: str, value: Any) -> None:
        content = self.params()
        content[section][key] = value
        self.write_params(content)

    def json(self, path: str) -> dict[str, Any]:
        return json.loads((self.folder / path).read_text())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("whole") / "project")
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
    yield project


METRIC_KEYS = {"model", "pruning", "head_ratio", "tasks", "mean", "perplexity", "params_total", "params_nonzero"} | {
    "params_added",
    "seconds",
    "versions",
}


def test_metrics_have_the_documented_keys(project: Project) -> None:
    for name in ("dense", "wanda-0.5/pruned", "wanda-0.5/heads-0.25"):
        metrics = project.json(f"data/metrics/tiny/{name}.json")
        assert set(metrics) >= METRIC_KEYS, name
        assert set(metrics["perplexity"]) == {"corpus", "tokens", "value"}
        for task in metrics["tasks"].values():
            assert set(task) >= {"metric", "value", "stderr", "n"}
        assert metrics["mean"] == pytest.approx(
            sum(t["value"] for t in metrics["tasks"].values()) / len(metrics["tasks"])
        )
    assert set(metrics["recovered"]) >= {"mean", "ci95", "method"}
    assert metrics["recovered"]["method"] == "paired bootstrap"
    assert (metrics["pruning"], metrics["head_ratio"]) == ("wanda-0.5", 0.25)


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
    project.set("grid", "baseline", ["meanshift"])
    assert project.repro() == {f"{stage}@tiny-wanda-0.5-meanshift" for stage in ("baseline", "evaluate_baseline")} | {
        "report"
    }
    assert "| meanshift |" in (project.folder / "data/report/report.md").read_text()
    project.set("grid", "baseline", [])
    project.set("grid", "pruning", ["magnitude-2of4"])
    ran = project.repro() - {"inputs@tiny"}  # it looks at files and computes nothing
    assert {name.split("@")[0] for name in ran} == {
        "prune",
        "capture_pruned",
        "extract",
        "probe",
        "compensate",
        "evaluate_pruned",
        "evaluate_restored",
        "report",
    }
    assert all("magnitude-2of4" in name for name in ran - {"report"})
    project.set("grid", "pruning", ["wanda-0.5"])
    assert project.repro() <= {"inputs@tiny", "report"}, "going back computes nothing"


def test_a_stage_that_fails_leaves_nothing_half_written(project: Project) -> None:
    data = project.folder / "data"
    before = {str(path): path.stat().st_mtime_ns for path in data.rglob("*")}
    output = project.run(
        "restorelcc", "prune", "--model", "tiny", "--pruning", "wanda-3of7", code=2
    )  # 7 does not divide any row
    assert "multiple of 7" in output
    assert {str(path): path.stat().st_mtime_ns for path in data.rglob("*")} == before
    assert [path.name for path in (project.folder / ".work").iterdir() if path.name != "locks"] == []


def test_a_second_run_from_nothing_is_byte_identical(project: Project, tmp_path: Path) -> None:
    again = Project(tmp_path / "again")
    again.repro()
    base = "data/tiny/wanda-0.5"
    for name in (
        f"{base}/components.safetensors",
        f"{base}/heads.parquet",
        f"{base}/heads-0.25/compensation.safetensors",
    ):
        assert (again.folder / name).read_bytes() == (project.folder / name).read_bytes(), name
    for name in ("dense", "wanda-0.5/pruned", "wanda-0.5/heads-0.25"):
        ours, theirs = (p.json(f"data/metrics/tiny/{name}.json") for p in (project, again))
        for metrics in (ours, theirs):
            del metrics["seconds"], metrics["versions"]
        assert ours == theirs, name
