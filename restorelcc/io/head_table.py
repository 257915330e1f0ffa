"""Columns of heads.parquet; `score` is what ranks, rank 0 the best."""

import pyarrow as pa

HEADS = pa.schema(
    [("layer", pa.int32()), ("head", pa.int32()), ("score", pa.float64()), ("rank", pa.int32())]
    + [(name, pa.float64()) for name in ("accuracy", "log_loss", "energy")]
)
