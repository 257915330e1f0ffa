"""The extract stage: what it takes from captured activations, and which it refuses."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from restorelcc.activations.store import layer_file, read_layer
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.layout import Layout
from restorelcc.base.tables import metadata_of, opened, sealed_metadata
from restorelcc.models.heads import HeadLayout, main_component
from restorelcc.models.tensors import read_tensors
from restorelcc.stages.extract import ExtractConfig
from restorelcc.stages.extract.stage import run
from tests import pico
from tests.activations import write_layer
from tests.stages.capture.project import CELL, CONFIG, ENTRY, capture, project

SHAPE = HeadLayout(pico.LAYERS, pico.HEADS, pico.HEAD_DIM)


def test_components_of_captured_activations_add_up_to_the_mean_loss(tmp_path: Path) -> None:
    layout = project(tmp_path)
    capture(layout)
    run(CELL, ExtractConfig(), ENTRY, layout)
    parts, metadata = read_tensors(layout.components(CELL), ("directions", "singular_values", "loadings"))
    assert (metadata["samples"], metadata["rank"]) == ("40", "6")
    whole = main_component(parts["directions"], parts["loadings"], pico.HEAD_DIM)
    for layer in range(SHAPE.layers):
        lost = read_layer(layout.dense_activations(CELL), layer, "question", SHAPE) - read_layer(
            layout.pruned_activations(CELL), layer, "question", SHAPE
        )
        torch.testing.assert_close(whole[layer], lost.mean(dim=0), atol=1e-5, rtol=1e-5)
        energy = parts["singular_values"][layer].square().sum(-1)
        torch.testing.assert_close(energy, lost.square().sum(dim=(0, 2)), atol=1e-4, rtol=1e-5)


def test_fewer_samples_than_numbers_of_a_head_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = project(tmp_path, count=4)
    capture(layout)
    run(CELL, ExtractConfig(), ENTRY, layout)
    assert "4 samples are fewer than the 6 numbers of a head" in capsys.readouterr().err
    parts, metadata = read_tensors(layout.components(CELL), ("singular_values",))
    assert metadata["rank"] == "4"
    assert (parts["singular_values"][..., 4:] == 0).all()


def _rewritten(path: Path, key: str, value: str) -> None:
    with opened(path) as file:
        metadata, table = metadata_of(file, path), file.read()
    sealed = sealed_metadata(table.schema, metadata | {key: value}, {})
    pq.write_table(table.replace_schema_metadata(sealed), path)


def _set(folder: Path, key: str, value: str) -> None:
    for layer in range(SHAPE.layers):
        _rewritten(layer_file(folder, layer), key, value)


def _other_shape(layout: Layout) -> None:
    folder = layout.pruned_activations(CELL)
    metadata = pq.read_schema(layer_file(folder, 0)).metadata
    digests = {k.decode(): v.decode() for k, v in metadata.items() if k.decode() not in ("layer", "layers", "heads")}
    for layer in range(SHAPE.layers):
        write_layer(
            folder,
            layer,
            list(range(40)),
            {"question": torch.zeros(40, 24)},
            HeadLayout(3, 6, 4),
            digests | {"head_dim": "4"},
        )


def _not_a_number(layout: Layout) -> None:
    folder = layout.pruned_activations(CELL)
    metadata = {k.decode(): v.decode() for k, v in pq.read_schema(layer_file(folder, 1)).metadata.items()}
    values = torch.full((40, SHAPE.width), float("nan"))
    write_layer(folder, 1, list(range(40)), {"question": values}, SHAPE, metadata)


FAULTS = {
    "other text": (lambda w: _set(w.pruned_activations(CELL), "text", "x"), BadInput, "captured on different text"),
    "other tokens": (lambda w: _set(w.pruned_activations(CELL), "tokens", "x"), BadInput, "at different tokens"),
    "other model": (lambda w: _set(w.dense_activations(CELL), "model", "x"), BadInput, "of model 'x', not 'pico'"),
    "other dense": (lambda w: _set(w.dense_activations(CELL), "checkpoint", "x"), BadInput, "another dense one"),
    "other dtype": (
        lambda w: _set(w.pruned_activations(CELL), "dtype", "bfloat16"),
        BadInput,
        r"dense model were captured in float32, those of the pruned one in bfloat16: .*name one in models\.pico\.dtype",
    ),
    "mixed layers": (
        lambda w: _rewritten(layer_file(w.dense_activations(CELL), 2), "checkpoint", "x"),
        BadInput,
        "layer-002.parquet was captured from another model or text",
    ),
    "swapped layers": (
        lambda w: layer_file(w.dense_activations(CELL), 2).replace(layer_file(w.dense_activations(CELL), 1)),
        BadInput,
        "not an activations file of layer 1",
    ),
    "missing layer": (lambda w: layer_file(w.dense_activations(CELL), 2).unlink(), BadInput, "002.parquet is missing"),
    "damaged": (
        lambda w: layer_file(w.dense_activations(CELL), 1).write_bytes(b"PAR1 nothing PAR1"),
        BadInput,
        "not a readable Parquet file",
    ),
    "other shape": (_other_shape, BadInput, "models of different shape"),
    "not a number": (_not_a_number, StageFailed, "layer 1 hold NaN"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_activations_that_do_not_belong_together_are_refused(tmp_path: Path, fault: str) -> None:
    change, kind, message = FAULTS[fault]
    layout = project(tmp_path, count=40)
    capture(layout, CONFIG.model_copy(update={"token_budget": 4000}))
    change(layout)
    with pytest.raises(kind, match=message):
        run(CELL, ExtractConfig(), ENTRY, layout)
    assert not layout.components(CELL).exists()
