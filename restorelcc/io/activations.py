"""Activations on disk: a folder with one Parquet file per layer, one row per sample, one column per role.

Letters: N samples, L layers, H heads, D head dim, X = H*D.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from restorelcc.core.errors import BadInput
from restorelcc.core.heads import HeadLayout
from restorelcc.io.tables import read_metadata

QUESTION, POSITIVE, NEGATIVE = "question", "positive", "negative"


def layer_file(folder: Path, layer: int) -> Path:
    """`layer-007.parquet`."""
    return folder / f"layer-{layer:03d}.parquet"


def write_layer(
    folder: Path,
    layer: int,
    sample_ids: list[int],
    roles_NX: dict[str, Tensor],
    layout: HeadLayout,
    digests: dict[str, str],
) -> None:
    """Write one layer: `sample_id`, a fixed-size-list<float>[X] per role; metadata: layer, L, H, D, digests."""
    columns = [pa.array(sample_ids, pa.int64())]
    for values_NX in roles_NX.values():
        flat = pa.array(values_NX.float().cpu().numpy().reshape(-1))
        columns.append(pa.FixedSizeListArray.from_arrays(flat, layout.width))
    metadata = {
        "layer": str(layer),
        "layers": str(layout.layers),
        "heads": str(layout.heads),
        "head_dim": str(layout.head_dim),
        **digests,
    }
    table = pa.table(columns, names=["sample_id", *roles_NX]).replace_schema_metadata(metadata)
    pq.write_table(table, layer_file(folder, layer), compression="zstd")


def read_layer(folder: Path, layer: int, role: str, layout: HeadLayout) -> Tensor:
    """z_NHD [N, H, D] float32 of one role of one layer; no other column or file is read."""
    path = layer_file(folder, layer)
    if not path.is_file():
        raise BadInput(f"{path} is missing: run the capture stage (dvc repro)")
    column = pq.read_table(path, columns=[role])[role].combine_chunks()
    values = np.array(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
    return layout.split(torch.from_numpy(values).reshape(-1, layout.width))


def read_layout(folder: Path) -> tuple[HeadLayout, dict[str, str]]:
    """The head layout and all metadata of an activations folder. Raises BadInput when the folder is empty."""
    if not layer_file(folder, 0).is_file():
        raise BadInput(f"{folder} holds no activations: run the capture stage (dvc repro)")
    metadata = read_metadata(layer_file(folder, 0))
    return HeadLayout(*(int(metadata[key]) for key in ("layers", "heads", "head_dim"))), metadata
