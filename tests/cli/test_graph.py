"""The stages as a table, in Mermaid and as a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from restorelcc.base.errors import BadInput
from restorelcc.cli.app import app
from restorelcc.cli.graph import mermaid_lines, run_counts, stage_graph
from restorelcc.pipeline.params import load_params
from tests.dag import ROOT

PARAMS = str(ROOT / "params.yaml")


def test_a_stage_waits_for_those_whose_outputs_it_reads() -> None:
    found = stage_graph(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    assert set(found.predecessors("extract")) == {"capture_dense", "capture_pruned"}
    assert set(found.predecessors("probe")) == {"extract"}, "edges that others imply are left out"
    assert not list(found.predecessors("inputs")) and not list(found.successors("report"))


def test_runs_are_counted_by_the_grid() -> None:
    params = load_params(ROOT / "params.yaml", ("grid.pruning=[wanda-0.5,wanda-0.6]", "grid.head_ratio=[0.1,0.2,0.3]"))
    own = {"own": {"cmd": "x", "matrix": {"seed": [1, 2], "model": "${grid.model}"}}, "once": {"cmd": "x"}}
    counts = run_counts(params, yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"] | own)
    assert (counts["own"], counts["once"]) == (2, 1), "stages of the user's own"
    assert {name: counts[name] for name in ("dense", "prune", "compensate", "recover", "report")} == {
        "dense": 1,
        "prune": 2,
        "compensate": 6,
        "recover": 0,
        "report": 1,
    }
    stages = stage_graph({"prune": {"outs": ["data/a"]}, "compensate": {"deps": ["data/a/b"]}})
    assert mermaid_lines(stages, counts) == [
        "flowchart LR",
        '    prune["prune x 2"]',
        '    compensate["compensate x 6"]',
        "    prune --> compensate",
    ]


def test_the_table_fits_eighty_columns_and_the_picture_is_an_svg(tmp_path: Path) -> None:
    output = CliRunner().invoke(app, ["graph", "--params", PARAMS], catch_exceptions=False).output
    assert max(map(len, output.splitlines())) <= 80
    assert "compensate" in output and "15 runs in all" in output and "recover" not in output
    CliRunner().invoke(app, ["graph", "--params", PARAMS, "--svg", str(tmp_path / "g.svg")], catch_exceptions=False)
    assert "<svg" in (tmp_path / "g.svg").read_text()
    with pytest.raises(BadInput, match="cannot be written"):
        CliRunner().invoke(
            app, ["graph", "--params", PARAMS, "--svg", str(tmp_path / "no" / "g.svg")], catch_exceptions=False
        )


@pytest.mark.parametrize("text", ["", "plots: []\n", "stages: 3\n"])
def test_a_pipeline_without_stages_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "dvc.yaml").write_text(text)
    with pytest.raises(BadInput, match=r"dvc\.yaml has no stages|dvc\.yaml"):
        CliRunner().invoke(app, ["graph", "--params", str(tmp_path / "params.yaml")], catch_exceptions=False)
