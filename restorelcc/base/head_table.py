"""Columns of heads.parquet: a score each, null where it was not computed; `score` is what ranks, rank 0 the best.

`log_loss`, lower is better, belongs to `paper` and breaks its ties.
"""

import pyarrow as pa

SCORES = ("paper", "relational", "causal", "gradient", "random", "mse", "kl", "energy")
HEADS = pa.schema(
    [("layer", pa.int32()), ("head", pa.int32()), ("score", pa.float64()), ("rank", pa.int32())]
    + [(name, pa.float64()) for name in (*SCORES, "log_loss")]
)
