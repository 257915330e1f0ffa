"""Columns of the per-item evaluation results."""

import pyarrow as pa

SAMPLES = pa.schema(
    [
        ("task", pa.string()),
        ("item_id", pa.int64()),
        ("digest", pa.string()),  # of what was asked: the same for every model, or they cannot be compared
        ("gold", pa.int64()),
        ("prediction", pa.int64()),
        ("correct", pa.bool_()),
        ("score", pa.float64()),  # of the task's metric; 0 or 1 for an accuracy
        ("log_likelihoods", pa.list_(pa.float64())),
    ]
)
