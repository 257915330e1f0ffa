"""What is said of GPUs that the installed torch cannot use, or that a model names and nobody has."""

from __future__ import annotations

from pathlib import Path

import pytest

from restorelcc.pipeline import gpus
from restorelcc.pipeline.gpus import Seen, diagnosed, seen_by_torch

BUILT = Seen("13.0", 1)


@pytest.mark.parametrize(
    ("listed", "seen", "device", "text", "fault"),
    [
        (0, None, "auto", "no GPU", None),
        (1, BUILT, "cuda", "1 GPU listed, torch can use 1 GPU", None),
        (2, Seen(), "auto", "2 GPUs listed, torch can use no GPU", "torch is a build without CUDA, while 2 GPUs"),
        (1, Seen(), "cpu", "1 GPU listed, torch can use no GPU", None),
        (
            1,
            Seen("13.0"),
            "auto",
            "1 GPU listed, torch can use no GPU",
            "torch, built for CUDA 13.0, cannot use 1 GPU: update",
        ),
        (
            1,
            BUILT,
            "cuda:1",
            "1 GPU listed, torch can use 1 GPU",
            "models.m.device is 'cuda:1', and torch can use 1",
        ),
        (0, Seen(), "cuda", "torch can use no GPU", "models.m.device is 'cuda', and torch can use no GPU"),
        (1, Seen(problem="x"), "auto", "1 GPU listed, torch can use no GPU", "torch does not start (x): install"),
    ],
)
def test_gpus_that_torch_cannot_use_are_faults(
    listed: int,
    seen: Seen | None,
    device: str,
    text: str,
    fault: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(listed):
        (tmp_path / "gpus" / f"0000:0{number}:00.0").mkdir(parents=True)
    monkeypatch.setattr(gpus, "_LISTED", tmp_path / "gpus")
    monkeypatch.setattr(gpus, "seen_by_torch", lambda: seen)  # None: nobody asks
    found = diagnosed({"m": device})
    assert found.text == text
    assert [each.startswith(str(fault)) for each in found.faults] == [True] * (fault is not None)


@pytest.mark.parametrize(
    ("printed", "seen"),
    [
        ("print('seen None False 0')", Seen()),
        ("print('a warning'); print('seen 13.0 True 2')", Seen("13.0", 2)),
        ("print('seen 13.0 False 2')", Seen("13.0", 0)),
        ("raise SystemExit('libcudart.so is missing')", Seen(problem="libcudart.so is missing")),
        ("pass", Seen(problem="it says nothing")),
    ],
)
def test_torch_is_asked_in_a_process_of_its_own(printed: str, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "torch.cuda.is_available(), torch.cuda.device_count()" in gpus._ASKED
    monkeypatch.setattr(gpus, "_ASKED", printed)
    assert seen_by_torch() == seen
