"""Columns of the per-item evaluation results."""

import pyarrow as pa

MEASURED = "measured"  # in the table's metadata: the fingerprint (base/fingerprint.py)

SAMPLES = pa.schema(
    [
        ("task", pa.string()),
        ("item_id", pa.int64()),
        ("digest", pa.string()),  # of what was asked: the same for every model, or they cannot be compared
        ("gold", pa.int64()),
        ("prediction", pa.int64()),
        ("correct", pa.bool_()),  # null where the metric is no mean over items
        # Of the task's metric; 0 or 1 for an accuracy; null where only all items together have one. For perplexities
        # the log-likelihood, and in `weight` the words or bytes it is of; else the weight is 1.
        ("score", pa.float64()),
        ("weight", pa.float64()),
        ("log_likelihoods", pa.list_(pa.float64())),
    ]
)
