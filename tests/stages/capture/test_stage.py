"""The capture stages on disk: what they write, what survives a kill, what they refuse."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

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
from tests.dag import ROOT
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


def _child(root: Path) -> None:
    os.environ["RESTORELCC_PROGRESS"] = "0"
    run_dense(Cell("pico"), CONFIG, ENTRY, Layout(root))


def test_killed_at_five_random_moments_it_goes_on_and_ends_byte_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = project(tmp_path, count=150)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # else the server finds no module of the tests, and says nothing
    # A server that has imported everything once forks the processes that are killed.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.stages.capture.test_stage"])

    def started() -> multiprocessing.process.BaseProcess:
        process = processes.Process(target=_child, args=(tmp_path,))
        process.start()
        return process

    begin = time.perf_counter()
    for _ in range(2):  # the first also starts the server
        begin = time.perf_counter()
        whole = started()
        whole.join()
        assert whole.exitcode == 0
    seconds = time.perf_counter() - begin
    folder, rng, killed, resumed = layout.dense_activations(CELL), random.Random(7), 0, 0
    expected = _contents(folder)
    for attempt in range(40):
        process = started()
        # Later and later: beside other work a run takes longer than the one that was timed.
        time.sleep(rng.uniform(0.02, 0.95) * seconds * (1 + attempt / 10))
        process.kill()
        process.join()
        if process.exitcode == 0:
            continue
        assert process.exitcode == -signal.SIGKILL
        assert _contents(folder) == expected, "what was there before is still there, whole"
        killed += 1
        resumed += bool(list(layout.work.glob("capture_dense-pico-*/part-*.npy")))
        again = started()
        again.join()
        assert again.exitcode == 0
        assert _contents(folder) == expected
        assert not list(layout.work.glob("capture_dense-*"))
        if killed >= 5 and resumed:
            break
    assert killed >= 5
    assert resumed


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
