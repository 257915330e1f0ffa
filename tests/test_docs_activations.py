"""The queries of docs/activations.md, run as they stand there on captured activations."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import numpy as np
import pandas
import polars
import pytest

from restorelcc.activations.store import layer_file, read_layer
from restorelcc.base.cell import Cell
from restorelcc.models.heads import HeadLayout
from tests import pico
from tests.dag import ROOT
from tests.stages.capture.project import CELL, capture, project

SHAPE = HeadLayout(pico.LAYERS, pico.HEADS, pico.HEAD_DIM)


def test_the_queries_of_the_how_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = project(tmp_path)
    capture(layout)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "activations.md").read_text(encoding="utf-8")
    queries = [
        query.replace("tiny", "pico").replace("layer-003", "layer-002")
        for query in re.findall(r"```sql\n(.*?)```", text, re.S)
    ]
    assert len(queries) == 2
    moved = duckdb.sql(queries[0]).fetchall()
    assert len(moved) == SHAPE.layers
    folders = (layout.dense_activations(Cell("pico")), layout.pruned_activations(CELL))
    for layer, (_, value) in enumerate(moved):
        dense, pruned = (read_layer(folder, layer, "question", SHAPE).flatten(1) for folder in folders)
        assert value == pytest.approx(float((dense - pruned).norm(dim=1).mean()), rel=1e-4)
    least = duckdb.sql(queries[1]).fetchall()
    assert len(least) == 5
    assert [row[3] for row in least] == sorted((row[3] for row in least), reverse=True)


def test_pandas_and_polars_read_the_same(tmp_path: Path) -> None:
    layout = project(tmp_path)
    capture(layout)
    path = layer_file(layout.dense_activations(CELL), 1)
    expected = read_layer(layout.dense_activations(CELL), 1, "negative", SHAPE).flatten(1).numpy()
    assert np.array_equal(np.stack(pandas.read_parquet(path, columns=["negative"])["negative"].to_list()), expected)
    assert np.array_equal(polars.read_parquet(path)["negative"].to_numpy(), expected)
