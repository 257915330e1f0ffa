"""Captured head outputs on disk: one Parquet file per layer, one row per sample, one column per role.

Letters: N samples, B rows at once, R roles, H heads, D head dim, X = H*D.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from restorelcc.base.documents import check_seal
from restorelcc.base.errors import BadInput
from restorelcc.base.tables import column_key, metadata_of, opened, read_metadata, sealed_metadata
from restorelcc.models.heads import HeadLayout

QUESTION, POSITIVE, NEGATIVE = "question", "positive", "negative"
_ROW_GROUP_BYTES = 1 << 20


def layer_file(folder: Path, layer: int) -> Path:
    """`layer-007.parquet`."""
    return folder / f"layer-{layer:03d}.parquet"


def rows_at_once(roles: int, layout: HeadLayout) -> int:
    """Rows of one row group: about a megabyte."""
    return max(1, _ROW_GROUP_BYTES // (roles * layout.width * 4))


def stream_layer(
    folder: Path,
    layer: int,
    sample_ids: Sequence[int],
    roles: Sequence[str],
    values_BRX: Iterable[np.ndarray],
    layout: HeadLayout,
    digests: dict[str, str],
) -> None:
    """Write one layer from blocks of rows in the order of the samples; each block becomes a row group.

    Columns: `sample_id`, and a fixed-size-list<float>[X] per role. Metadata: layer, L, H, D, digests.
    """
    metadata = {
        "layer": str(layer),
        "layers": str(layout.layers),
        "heads": str(layout.heads),
        "head_dim": str(layout.head_dim),
        **digests,
    }
    # The field within a list is called `element`, which is its name in the file too.
    vector = pa.list_(pa.field("element", pa.float32()), layout.width)
    schema = pa.schema([("sample_id", pa.int64()), *((role, vector) for role in roles)], metadata=metadata)
    # Mantissas repeat in no dictionary, but their bytes compress better apart: half the size in half the time.
    writer = pq.ParquetWriter(
        layer_file(folder, layer),
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        use_byte_stream_split=[f"{role}.list.element" for role in roles],
        write_statistics=["sample_id"],
        write_page_checksum=True,
    )
    digests_of = {name: hashlib.sha256() for name in schema.names}
    with writer:
        written = 0
        for block_BRX in values_BRX:
            rows = len(block_BRX)
            ids = np.array(sample_ids[written : written + rows], dtype=np.int64)
            digests_of["sample_id"].update(ids.data)
            columns = [pa.array(ids)]
            for number, role in enumerate(roles):
                flat = np.ascontiguousarray(block_BRX[:, number], dtype=np.float32).reshape(-1)
                digests_of[role].update(flat.data)
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), type=vector))
            writer.write_table(pa.table(columns, schema=schema), row_group_size=rows)
            written += rows
        columns_of = {name: digest.hexdigest() for name, digest in digests_of.items()}
        sealed = sealed_metadata(schema, metadata, columns_of)  # known only now: the rows come block by block
        writer.add_key_value_metadata({key: value for key, value in sealed.items() if key not in metadata})
    if written != len(sample_ids):
        raise ValueError(f"layer {layer}: {written} rows for {len(sample_ids)} samples")


def read_layer(folder: Path, layer: int, role: str, layout: HeadLayout) -> Tensor:
    """z_NHD [N, H, D] float32 of one role of one layer; no other column or file is read."""
    path = layer_file(folder, layer)
    with opened(path) as table:
        metadata = metadata_of(table, path)
        index = table.schema_arrow.get_field_index(role)
        kind = table.schema_arrow.field(index).type if index >= 0 else None
        if kind != pa.list_(pa.field("element", pa.float32()), layout.width):
            raise BadInput(
                f"{path} holds no activations of the role {role!r} with {layout.width} numbers each: delete the folder "
                "and run dvc repro"
            )
        column = table.read(columns=[role]).column(0).combine_chunks()
        values = np.array(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
    check_seal(path, metadata.get(column_key(role)), hashlib.sha256(values.data).hexdigest())
    if metadata.get("layer") != str(layer):
        raise BadInput(f"{path} is no activations file of layer {layer}: delete the folder and run dvc repro")
    return layout.split(torch.from_numpy(values).reshape(-1, layout.width))


def read_layout(folder: Path) -> tuple[HeadLayout, dict[str, str]]:
    """The head layout and the metadata that all files of an activations folder share.

    Raises BadInput when the folder is empty, a layer is missing or damaged, or a layer comes from another capture.
    """
    if not layer_file(folder, 0).is_file():
        raise BadInput(f"{folder} holds no activations: run the capture stage (dvc repro)")
    common = _layer_metadata(folder, 0)
    layers, heads, head_dim = (int(common[key]) for key in ("layers", "heads", "head_dim"))
    layout = HeadLayout(layers, heads, head_dim)
    for layer in range(1, layout.layers):
        if _layer_metadata(folder, layer) != common:
            raise BadInput(
                f"{layer_file(folder, layer)} was captured from another model or text than layer 0: delete the folder "
                "and run dvc repro"
            )
    return layout, common


def check_one_shape(dense: HeadLayout, pruned: HeadLayout) -> None:
    """Raises BadInput unless both have as many layers and heads, of the same width."""
    if dense != pruned:
        raise BadInput(f"dense and pruned activations come from models of different shape, {dense} and {pruned}")


def _layer_metadata(folder: Path, layer: int) -> dict[str, str]:
    path = layer_file(folder, layer)
    metadata = read_metadata(path)
    missing = {"layers", "heads", "head_dim", "model", "text", "checkpoint"} - set(metadata)
    if missing or metadata.pop("layer", None) != str(layer):
        raise BadInput(f"{path} is not an activations file of layer {layer}: delete the folder and run dvc repro")
    return metadata
