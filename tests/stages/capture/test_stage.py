"""The capture stages on disk: what they write, what survives a kill, what they refuse."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from restorelcc.activations.store import layer_file, read_layer, read_layout
from restorelcc.base.cell import Cell
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.models.checkpoints import save_checkpoint
from restorelcc.models.heads import HeadLayout
from restorelcc.models.text import encode_contrasts
from restorelcc.stages.capture import CaptureConfig
from restorelcc.stages.capture.capture import capture_heads, response_samples
from restorelcc.stages.capture.stage import run_dense, run_pruned
from tests import pico
from tests.stages.capture.project import CELL, CONFIG, ENTRY, capture, project, tuples, write_tuples

SHAPE = HeadLayout(pico.LAYERS, pico.HEADS, pico.HEAD_DIM)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_hold_the_roles_in_the_order_of_the_samples(tmp_path: Path) -> None:
    layout = project(tmp_path)
    capture(layout)
    rows = tuples(40)
    expected = capture_heads(
        pico.pico(), response_samples(encode_contrasts(pico.word_tokenizer(), rows, 99)), token_budget=40, pad=0
    )
    for layer in range(SHAPE.layers):
        for number, role in enumerate(("question", "positive", "negative")):
            found = read_layer(layout.dense_activations(CELL), layer, role, SHAPE)
            assert torch.equal(found, SHAPE.split(expected[layer, :, number]))
    table = pq.read_table(layer_file(layout.dense_activations(CELL), 1))
    assert table.column("sample_id").to_pylist() == [row["sample_id"] for row in rows]
    pruned = pq.ParquetFile(layer_file(layout.pruned_activations(CELL), 0))
    assert pruned.schema_arrow.names == ["sample_id", "question"]
    assert pruned.metadata.row_group(0).column(1).compression == "ZSTD"
    shape, metadata = read_layout(layout.dense_activations(CELL))
    assert shape == SHAPE
    assert (metadata["model"], metadata["responses"], metadata["truncated"]) == ("pico", "joint", "0")
    of_pruned = read_layout(layout.pruned_activations(CELL))[1]
    assert of_pruned["tokens"] == metadata["tokens"]
    assert of_pruned["dense"] == metadata["checkpoint"]
    assert list(layout.work.iterdir()) == []


def test_the_token_budget_changes_no_more_than_rounding(tmp_path: Path) -> None:
    layout = project(tmp_path)
    capture(layout)
    small = read_layer(layout.dense_activations(CELL), 2, "negative", SHAPE)
    capture(layout, CaptureConfig(token_budget=10_000))
    torch.testing.assert_close(
        read_layer(layout.dense_activations(CELL), 2, "negative", SHAPE), small, atol=1e-5, rtol=1e-5
    )


CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")


def _killed_before(root: Path, last: int | None, counted: Path) -> None:
    """In a fork: capture, and die before the change number `last` below root; how many there were, in a file."""
    changes = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (opened or event in CHANGES) and str(arguments[0]).startswith(str(root)):
            changes += 1
            if changes == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    run_dense(Cell("pico"), CONFIG, ENTRY, Layout(root))
    counted.write_text(str(changes))


def test_killed_at_any_point_it_goes_on_and_ends_byte_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points are changes on disk: of the first parts, of later ones, and each of the last, which publish the layers."""
    monkeypatch.setenv("RESTORELCC_PROGRESS", "0")
    layout, counted = project(tmp_path / "project"), tmp_path / "changes"

    def ended(last: int | None) -> int:
        process = multiprocessing.get_context("fork").Process(target=_killed_before, args=(layout.root, last, counted))
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    assert ended(None) == 0
    folder, resumed = layout.dense_activations(CELL), 0
    expected = _contents(folder)
    assert ended(None) == 0, "over what is there"
    total = int(counted.read_text())
    assert total > 30
    for last in (1, 2, 7, total // 3, total // 2, *range(total - 9, total + 1)):
        assert ended(last) == -signal.SIGKILL
        if folder.exists():
            assert _contents(folder) == expected, "what was there before is still there, whole"
        else:  # the moment between two renames
            (old,) = layout.work.glob("write-*/old-*")
            assert _contents(old) == expected
        resumed += bool(list(layout.work.glob("capture_dense-pico-*/part-*.npy")))
        run_dense(Cell("pico"), CONFIG, ENTRY, layout)
        assert _contents(folder) == expected
        assert list(layout.work.iterdir()) == []
    assert resumed >= 5


def test_batches_of_another_plan_are_not_taken_for_those_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether rows share lines may be decided otherwise the second time: the batches have the same shapes then."""
    layout = project(tmp_path)
    texts = [" ".join(f"w{(length + at) % 50 + 3}" for at in range(length)) for length in (40, 10, 30, 20)]
    rows = [
        {"sample_id": n, "task": "t", "question": t, "positive": "w5", "negative": "w6"} for n, t in enumerate(texts)
    ]
    write_tuples(layout, rows)
    config, stage = CaptureConfig(token_budget=96), "restorelcc.stages.capture.stage"

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(f"{stage}.write_activations", stop)
        run_pruned(CELL, config, ENTRY, layout)
    monkeypatch.setattr(f"{stage}.why_not_joint", lambda *_: "not today")
    run_pruned(CELL, config, ENTRY, layout)
    resumed = _contents(layout.pruned_activations(CELL))
    run_pruned(CELL, config, ENTRY, layout)
    assert _contents(layout.pruned_activations(CELL)) == resumed


def test_finished_batches_are_not_computed_again_unless_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = project(tmp_path)
    capture(layout)
    expected = _contents(layout.dense_activations(CELL))

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("restorelcc.stages.capture.stage.write_activations", stop)
    with pytest.raises(KeyboardInterrupt):
        run_dense(Cell("pico"), CONFIG, ENTRY, layout)
    monkeypatch.undo()
    (folder,) = layout.work.glob("capture_dense-pico-*")
    parts = sorted(folder.glob("part-*.npy"))
    damaged = bytearray(parts[2].read_bytes())
    damaged[-1] ^= 1
    parts[2].write_bytes(damaged)
    parts[4].write_bytes(parts[4].read_bytes()[:100])
    stray = layout.work / "capture_dense-pico-0123456789abcdef"
    stray.mkdir()
    run_dense(Cell("pico"), CONFIG, ENTRY, layout)
    assert f"{len(parts) - 2} of {len(parts)} batches are kept" in capsys.readouterr().err
    assert _contents(layout.dense_activations(CELL)) == expected
    assert list(layout.work.iterdir()) == [], "parts of other fingerprints go too"


def test_long_questions_lose_their_left_end_alike_and_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = project(tmp_path)
    config = CaptureConfig(max_tokens=10, token_budget=40)
    capture(layout, config)
    rows = tuples(40)
    lengths = [
        len(row["question"].split()) + max(len(row[s].split()) for s in ("positive", "negative")) for row in rows
    ]
    cut = sum(length > 10 for length in lengths)
    assert 0 < cut < 40
    for folder in (layout.dense_activations(CELL), layout.pruned_activations(CELL)):
        assert read_layout(folder)[1]["truncated"] == str(cut)
    assert f"{cut} of 40 questions lost tokens on the left" in capsys.readouterr().err


def test_a_question_longer_than_the_models_own_context_is_cut_to_it(tmp_path: Path) -> None:
    layout = project(tmp_path)
    save_checkpoint(layout.dense(CELL), pico.pico("opt", max_position_embeddings=12), pico.word_tokenizer())
    run_dense(Cell("pico"), CONFIG, ENTRY, layout)
    assert int(read_layout(layout.dense_activations(CELL))[1]["truncated"]) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positive": ""}, "contrast.parquet: question .* without a token"),
        ({"negative": " "}, "contrast.parquet: question .* without a token"),
        ({"question": ""}, "contrast.parquet: question .* without a token"),
        (
            {"positive": "w5 " * 30},
            "contrast.parquet: response .* fills all 20 tokens .*: shorten the response",
        ),
        (None, "holds no contrast tuple"),
    ],
)
def test_tuples_that_cannot_be_read_are_refused_and_nothing_is_written(
    tmp_path: Path, change: dict[str, str] | None, message: str
) -> None:
    layout = project(tmp_path, count=1)
    rows = tuples(5)
    rows[3] |= change or {}
    write_tuples(layout, rows if change else [])
    for run in (run_dense, run_pruned):
        with pytest.raises(BadInput, match=message):
            run(CELL, CaptureConfig(max_tokens=20), ENTRY, layout)
    assert not layout.dense_activations(CELL).exists()
    assert not layout.pruned_activations(CELL).exists()
    assert not layout.work.exists() or not list(layout.work.iterdir())


def test_a_model_that_cannot_share_the_question_is_run_apart_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = project(tmp_path)
    capture(layout)
    joint = read_layer(layout.dense_activations(CELL), 1, "negative", SHAPE)
    monkeypatch.setattr("restorelcc.stages.capture.capture.can_pack", lambda _model: False)
    run_dense(Cell("pico"), CONFIG, ENTRY, layout)
    assert "separate sequences, which takes longer: sdpa attention accepts no custom mask" in capsys.readouterr().err
    assert read_layout(layout.dense_activations(CELL))[1]["responses"].startswith("separate: sdpa")
    apart = read_layer(layout.dense_activations(CELL), 1, "negative", SHAPE)
    torch.testing.assert_close(apart, joint, atol=1e-5, rtol=1e-5)
