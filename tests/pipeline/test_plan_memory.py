"""What `restorelcc plan` says a stage takes in memory, beside what its process took at most."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.plan_memory import PROJECTS, measured_peak, peaks, planned_peaks, random_project
from restorelcc.__main__ import main


def test_the_planned_peak_of_a_small_model_is_within_30_percent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_project(tmp_path, width=768, ffn=2048, layers=6)
    monkeypatch.chdir(tmp_path)
    for stage in ("corpus", "dense"):
        monkeypatch.setattr("sys.argv", ["restorelcc", stage, "--model", model])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
    weights = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert weights > 100 * 2**20, "it counts beside the libraries"
    measured, planned = measured_peak(tmp_path, "capture_dense", model), planned_peaks(tmp_path, model)["capture_dense"]
    assert planned == pytest.approx(measured, rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROJECTS)
def test_the_planned_peak_of_every_stage_is_within_30_percent(name: str, tmp_path: Path) -> None:
    found = {peak.stage: round(peak.ratio, 2) for peak in peaks(name, tmp_path / "project")}
    print(name, found)
    assert len(found) >= 10
    assert not {stage: ratio for stage, ratio in found.items() if not 1 / 1.3 <= ratio <= 1.3}
