"""Columns of the per-item evaluation results."""

import pyarrow as pa

SAMPLES = pa.schema(
    [
        ("task", pa.string()),
        ("item_id", pa.int64()),
        ("gold", pa.int64()),
        ("prediction", pa.int64()),
        ("correct", pa.bool_()),
        ("log_likelihoods", pa.list_(pa.float64())),
    ]
)
